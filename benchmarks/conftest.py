"""Fixtures that more than one benchmark uses."""

from pathlib import Path

import pytest
import torch

from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Wide-ResNet-50-2 for 256 x 256 pixels."""
    torch.manual_seed(0)
    config = ModelConfig("wide_resnet50_2", "random")
    path = tmp_path_factory.mktemp("bench") / "model.safetensors"
    return save_checkpoint(Checkpoint(SCRD("wide_resnet50_2"), ScoringSpec(), config), path)
