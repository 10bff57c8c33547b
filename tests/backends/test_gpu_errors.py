"""What is said where there is no GPU, or where one fails; needs none."""

import pytest
import torch

from scrd_fast.backends.cuda import explain_faults
from scrd_fast.backends.registry import why_no_gpu
from scrd_fast.errors import DeviceFaultError


def test_a_fault_is_one_typed_error():
    with pytest.raises(DeviceFaultError, match=r"illegal memory access.*load the engine again"
                       ) as caught, explain_faults():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\n"
                                     "CUDA kernel errors might be reported at another call")
    assert "\n" not in str(caught.value)


def test_memory_that_is_too_small_is_none():
    with pytest.raises(torch.cuda.OutOfMemoryError), explain_faults():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_why_there_is_no_gpu():
    """In PyTorch's own words, which tell a driver that is too old from none."""
    reason = why_no_gpu()
    assert reason.startswith("PyTorch finds no NVIDIA GPU (")
    assert reason.endswith("; `nvidia-smi` shows whether the driver does")
    assert "\n" not in reason
