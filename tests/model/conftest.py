"""A model, and its tensors as the published code saves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scrd_fast.model.published_pickle import convert_published
from scrd_fast.model.scrd import SCRD
from tests.model.published_files import State, published_name, unused_state


@pytest.fixture(scope="module")
def model() -> SCRD:
    torch.manual_seed(3)
    model = SCRD("resnet18").eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            nn.init.normal_(part.running_mean)
    return model


@pytest.fixture
def published(model: SCRD) -> State:
    return {published_name(k): v for k, v in model.state_dict().items()} | unused_state()


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """Save an object with torch.save, convert the file, return the path of the result."""

    def run(saved: object, **options: object) -> Path:
        torch.save(saved, tmp_path / "published.pth", **options)
        return convert_published(tmp_path / "published.pth", tmp_path / "out.safetensors")

    return run
