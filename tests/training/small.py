"""A training of seconds: its options, and what it leaves."""

from pathlib import Path
from typing import Any

import torch

from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.model.checkpoint import load_checkpoint

SMALL: dict[str, Any] = {
    "backbone": "resnet18", "teacher": "random", "input_size": 32, "batch_size": 4,
    "progress": False, "noise": NoiseConfig(min_side=4, max_share=0.25, strength=0.8)}

Tensors = dict[str, torch.Tensor]


def tensors(path: Path) -> Tensors:
    return load_checkpoint(path).model.state_dict()


def assert_same(a: Tensors, b: Tensors) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
