"""The published training step that the benchmark times makes the same model as ours."""

import numpy as np
import pytest
import torch

from benchmarks.peers import PublishedStep
from scrd_fast.model.scrd import SCRD
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.feature_cache import FeatureCache
from scrd_fast.training.trainer import Trainer
from tests.support.tolerances import allowed


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["computed", "kept"])
def test_published_step_is_our_step_in_float64(limit):
    """The clean images come again in each step, with other noise."""
    torch.manual_seed(0)
    published, ours = SCRD("resnet18").double(), SCRD("resnet18").double()
    ours.load_state_dict(published.state_dict())
    step = PublishedStep(published)
    config = TrainConfig(backbone="resnet18", input_size=32,
                         published_batchnorm=True)
    trainer = Trainer(config, ours, torch.device("cpu"), torch.float64, FeatureCache(4, limit))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    for i, order in enumerate(([0, 1, 2, 3], [2, 3, 0, 1], [3, 1, 2, 0])):
        clean = images[order]
        noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        expected = float(step(clean, noisy))
        figures = trainer.update(i, clean, noisy, np.array(order))
        assert abs(figures["loss"] - expected) <= allowed("training_loss", "float64", "published")
    state = ours.state_dict()
    for name, value in published.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=name)
