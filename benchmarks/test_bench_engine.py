"""The whole path, uint8 pixels to score and map, against the published loop in the same run.

Wide-ResNet-50-2, 256 x 256, batch 1. Equality is asserted before anything is timed; the two are
timed in turn (A B A B), so that a busy machine hurts both, and the ratio is taken pair by pair.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import scrd_fast
from benchmarks.peers import PublishedLoop
from scrd_fast.engine.backends.runner import native_precisions
from scrd_fast.engine.engine import Engine
from scrd_fast.model.checkpoint import (
    Checkpoint,
    ModelConfig,
    load_checkpoint,
    save_checkpoint,
)
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

PAIRS = 15
# Faster than the published loop by at least this, on a CPU with AVX-512 BF16.
WANTED = {"fp32": 1.6, "bf16": 3.0}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (4, 3, 12, 12)))
    smooth = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic").numpy()
    return np.clip(smooth, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = SCRD("wide_resnet50_2")
    spec = ScoringSpec()
    config = ModelConfig("wide_resnet50_2", "random")
    path = tmp_path_factory.mktemp("bench") / "model.safetensors"
    return save_checkpoint(Checkpoint(model, spec, config), path)


@pytest.fixture(scope="module")
def published(checkpoint: Path) -> PublishedLoop:
    loaded = load_checkpoint(checkpoint)
    return PublishedLoop(loaded.model, loaded.spec)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_engine_against_published_loop(
    benchmark: Any, checkpoint: Path, published: PublishedLoop, images: NDArray[np.uint8],
    precision: str,
) -> None:
    if precision not in native_precisions("openvino"):
        pytest.skip(f"this CPU does not compute in {precision} natively")
    engine = scrd_fast.build_engine(checkpoint, checkpoint.with_suffix(f".{precision}.scrd"),
                                    backend="openvino", precision=precision)
    scores, maps = published.score(images)
    result = engine.score(images)
    assert result.maps is not None
    allowed = 1e-4 if precision == "fp32" else 2e-2
    assert np.abs(result.maps - maps).max() <= allowed * np.ptp(maps)
    assert np.abs(result.scores - scores).max() <= allowed * np.abs(scores).max()

    ours, theirs = [], []
    for i in range(3 + PAIRS):
        image = images[i % len(images)][None]
        ours.append(_seconds(engine, image))
        theirs.append(_seconds(published, image))
    ratios = np.array(theirs[3:]) / np.array(ours[3:])
    benchmark.extra_info["published_ms"] = float(np.median(theirs[3:]) * 1e3)
    benchmark.extra_info["ratio_median"] = float(np.median(ratios))
    benchmark.extra_info["ratio_min_max"] = [float(ratios.min()), float(ratios.max())]
    print(f"\n{precision}: engine {np.median(ours[3:]) * 1e3:.1f} ms, published loop"
          f" {np.median(theirs[3:]) * 1e3:.1f} ms, {np.median(ratios):.2f} times as fast"
          f" ({ratios.min():.2f} to {ratios.max():.2f})")
    benchmark.pedantic(engine.score, args=(images[:1],), rounds=PAIRS, warmup_rounds=3)
    assert np.median(ratios) >= WANTED[precision] or "bf16" not in native_precisions("openvino")


def _seconds(scorer: Engine | PublishedLoop, image: NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    scorer.score(image)
    return time.perf_counter() - start
