"""The mark of tests and benchmarks that only a GPU runs."""

import pytest
import torch

ON_GPU = [pytest.mark.gpu,
          pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
