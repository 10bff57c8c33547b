"""Small and large checkpoints for the engine tests."""

import pytest
import torch

from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.published import published_model


@pytest.fixture(scope="session")
def small():
    """An untrained resnet18 at 64 px that weights scales and reduces by the maximum."""
    torch.manual_seed(3)
    spec = ScoringSpec(input_size=64, weighting="scale", blur_sigma=1.5, reduction="max")
    return Checkpoint(SCRD("resnet18").eval(), spec, ModelConfig("resnet18", "random"))


@pytest.fixture(scope="session")
def small_path(small, tmp_path_factory):
    return save_checkpoint(small, tmp_path_factory.mktemp("small") / "model.safetensors")


@pytest.fixture(scope="session")
def large():
    """Wide-ResNet-50-2 at 256 px with the recorded weights."""
    config = ModelConfig("wide_resnet50_2", "recorded")
    return Checkpoint(published_model(), ScoringSpec(weighting="scale"), config)


@pytest.fixture(scope="session")
def large_path(large, tmp_path_factory):
    return save_checkpoint(large, tmp_path_factory.mktemp("large") / "model.safetensors")
