"""The published training step that the benchmark times makes the same model as ours."""

import torch

from benchmarks.peers import PublishedStep
from scrd_fast.model.scrd import SCRD
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.trainer import Trainer
from tests.support.tolerances import allowed


def test_published_step_is_our_step_in_float64():
    torch.manual_seed(0)
    published, ours = SCRD("resnet18").double(), SCRD("resnet18").double()
    ours.load_state_dict(published.state_dict())
    step = PublishedStep(published)
    config = TrainConfig(backbone="resnet18", input_size=32,
                         published_batchnorm=True)
    trainer = Trainer(config, ours, torch.device("cpu"), torch.float64)
    generator = torch.Generator().manual_seed(1)
    for i in range(3):
        clean, change = torch.randn(2, 4, 3, 32, 32, generator=generator, dtype=torch.float64)
        noisy = clean + 0.3 * change
        expected = float(step(clean, noisy))
        assert abs(trainer.update(i, clean, noisy)["loss"] - expected) <= allowed(
            "training_loss", "float64", "published")
    state = ours.state_dict()
    for name, value in published.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=name)
