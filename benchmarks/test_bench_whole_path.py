"""Every backend and precision of this machine, by what `scrd-fast bench` measures: batches of 1, 8
and 32 with p50, p90 and p99, start-up, memory, images that arrive at random. Nothing is judged."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.models import engine_file, pictures, untrained
from benchmarks.size import BACKBONE, QUICK, SIDE
from benchmarks.timing import repeat
from scrd_fast.backends.registry import native_precisions
from scrd_fast.engine.load import load_engine
from scrd_fast.report.bench import lines
from scrd_fast.timing.bench import bench

MODELS = [(BACKBONE, SIDE)] if QUICK else [("resnet18", 128), (BACKBONE, SIDE)]
ENGINES = [(backend, precision) for backend in ("openvino", "torch_eager")
           for precision in native_precisions(backend)]


@pytest.mark.parametrize(("backbone", "side"), MODELS)
@pytest.mark.parametrize(("backend", "precision"), ENGINES[:1] if QUICK else ENGINES)
def test_engine(benchmark: Any, folder: Path, backbone: str, side: int, backend: str,
                precision: str) -> None:
    path = engine_file(untrained(backbone, side, folder), precision, backend)
    found = bench(path, seconds=1 if QUICK else 10)
    print("\n" + "\n".join(lines(found)))
    benchmark.extra_info["whole_path"] = found.to_dict() | {"environment": None}
    with load_engine(path) as engine:
        image = pictures(side, 1)
        repeat(benchmark, lambda: engine.score(image), 12)
