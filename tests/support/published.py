"""The recorded numbers of the published code and the weights they were recorded with."""

import json
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from scrd_fast.model.published import rename_published
from scrd_fast.model.scrd import SCRD

GOLDEN = Path(__file__).parents[1] / "golden"


@lru_cache(maxsize=1)
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "published_wrn50_seed7.npz", allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays}


def _fill(key: str, shape: list[int]) -> np.ndarray:
    rng = np.random.default_rng([7, zlib.crc32(key.encode())])
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif last == "weight" and len(shape) >= 2:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif last == "weight":
        value = 1 + 0.1 * rng.standard_normal(shape)
    else:
        value = 0.1 * rng.standard_normal(shape)
    return (value * (0.002 if key == "mlp.weight" else 1)).astype(np.float32)


def published_model() -> SCRD:
    """Wide-ResNet-50-2 with the recorded weights, eval mode."""
    shapes = json.loads((GOLDEN / "published_state_dict_shapes.json").read_text())
    state = {}
    for key, shape in shapes.items():
        name = rename_published(key)
        if name is not None:  # parts that are never run are not drawn either
            state[name] = torch.from_numpy(np.asarray(_fill(key, shape)))
    model = SCRD("wide_resnet50_2")
    model.load_state_dict(state)
    return model.eval()


def relative(value: object, reference: np.ndarray) -> float:
    """max|a - b| / max|b|."""
    return float(np.abs(np.asarray(value) - reference).max() / np.abs(reference).max())
