"""The models and engine files that the benchmarks time, each made once."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import scrd_fast
from scrd_fast.graph.quantize import STEM
from scrd_fast.metrics.agreement import Limits
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, load_checkpoint, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

# Untrained weights rank images by chance, so that fewer bits may reorder them more than the table
# allows, and no layers can be searched for: int8 leaves out what the search finds for one that was
# trained for a short while on the demo's images, and for the demo's own, which is nothing but what
# always is (tests/building/test_search.py).
# bf16 is held to the size of its scores, for which a few images do.
LIMITS = {"fp32": None, "bf16": Limits(score_error=2e-2), "int8": Limits()}


def pictures(side: int, count: int = 4) -> NDArray[np.uint8]:
    """(count, side, side, 3): smooth, as pictures are."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").numpy()
    return np.clip(smooth, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def untrained(backbone: str, side: int, folder: Path, student: str = "full") -> Path:
    """A checkpoint with random weights, the same each time."""
    path = folder / f"{backbone}-{side}-{student}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_checkpoint(Checkpoint(SCRD(backbone, student), ScoringSpec(input_size=side),
                                   ModelConfig(backbone, "random", student)), path)
    return path


def engine_file(checkpoint: Path, precision: str, backend: str = "openvino",
                buckets: tuple[int, ...] | None = None) -> Path:
    """An engine of it; buckets: as in build_engine."""
    path = checkpoint.with_suffix(f".{backend}.{precision}.scrd")
    if not path.exists():
        side = load_checkpoint(checkpoint).spec.input_size
        scrd_fast.build_engine(
            checkpoint, path, backend=backend, precision=precision, limits=LIMITS[precision],
            images=pictures(side) if precision == "int8" else None, keep=[STEM],
            buckets=buckets).close()
    return path
