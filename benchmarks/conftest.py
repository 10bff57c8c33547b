"""Fixtures that more than one benchmark uses, and the machine in what pytest-benchmark stores."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scrd_fast.engine.bench import environment
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

_ENVIRONMENT = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    """Look at the machine before anything is timed: afterwards it is busy with that."""
    config.stash[_ENVIRONMENT] = environment()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["scrd_fast"] = config.stash[_ENVIRONMENT]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained Wide-ResNet-50-2 for 256 x 256 pixels."""
    torch.manual_seed(0)
    config = ModelConfig("wide_resnet50_2", "random")
    path = tmp_path_factory.mktemp("bench") / "model.safetensors"
    return save_checkpoint(Checkpoint(SCRD("wide_resnet50_2"), ScoringSpec(), config), path)
