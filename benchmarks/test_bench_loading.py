"""From the start of a process to the score of one picture, and the memory that it takes.

Ours is the command line, `scrd-fast score`; a peer is the shortest script that a user would write
for its library: the exported model, OpenCV to read the picture. Each is a process of its own, in
turn with the others; all have run once, so that what the system keeps of their files is in memory,
but for what is timed from the disk. Scores are held against each other before anything is timed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

import scrd_fast
from benchmarks.judge import judge
from benchmarks.models import engine_file, pictures, untrained
from benchmarks.size import BACKBONE, QUICK, SIDE
from benchmarks.timing import record, repeat, time_in_turn
from scrd_fast.backends.registry import native_precisions

ROUNDS = 7
# Seconds to the first score, on a machine at rest: of ResNet-18 at 128 px, and of Wide-ResNet-50-2.
WANTED = {"resnet18": 0.8, "wide_resnet50_2": 1.5}
# Bytes at most: so much besides, and so many times the weights.
PEAK, RESIDENT = (100e6, 1.5), (60e6, 1.2)
MODELS = [("resnet18", 64)] if QUICK else [("resnet18", 128), (BACKBONE, SIDE)]
PRECISIONS = ["fp32"] if QUICK else native_precisions("openvino")

_READ = """
import sys, cv2, numpy as np
model, picture, side = sys.argv[1], sys.argv[2], int(sys.argv[3])
image = cv2.resize(cv2.imread(picture)[:, :, ::-1], (side, side))[None]
"""
PEERS = {
    "onnxruntime fp32": _READ + """
import onnxruntime
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
print(session.run(["score", "map"], {"images": image})[0][0])
""",
    "plain OpenVINO fp32": _READ + """
import openvino
compiled = openvino.Core().compile_model(model, "CPU", {
    "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"})
print(compiled({"images": image})["score"][0])
""",
}
_OURS = """
import re, sys, numpy as np
from pathlib import Path
from scrd_fast.engine.load import load_engine
with load_engine(sys.argv[1]) as engine:
    side = engine.spec.input_size
    engine.score(np.zeros((1, side, side, 3), np.uint8))
    print(re.search(r"VmRSS:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
"""


# A small process between: what one has in memory counts for its children until they begin.
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


class Run(NamedTuple):
    """seconds: of a process; printed: by it."""

    seconds: float
    printed: str


def run(command: Sequence[str]) -> Run:
    # Python's compiled files are kept, as an installation makes them: a source tree under a setting
    # against them is compiled anew in each process.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return Run(time.perf_counter() - start, done.stdout)


def forget(path: Path) -> None:
    """Make the system read a file from the disk the next time."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Model(NamedTuple):
    """weights: bytes of the portable graph, in float32."""

    backbone: str
    side: int
    checkpoint: Path
    picture: Path
    onnx: Path
    weights: int

    def ours(self, precision: str) -> list[str]:
        return [str(Path(sys.executable).with_name("scrd-fast")), "score", "--quiet",
                str(engine_file(self.checkpoint, precision)), str(self.picture)]

    def peer(self, name: str) -> list[str]:
        return [sys.executable, "-c", PEERS[name], str(self.onnx), str(self.picture),
                str(self.side)]


@pytest.fixture(scope="module", params=MODELS, ids=[f"{b}-{s}" for b, s in MODELS])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Model]:
    backbone, side = request.param
    checkpoint = untrained(backbone, side, folder)
    picture = folder / f"{side}.png"
    cv2.imwrite(str(picture), pictures(side, 1)[0])
    onnx = scrd_fast.export_onnx(checkpoint, folder / f"{backbone}.onnx")
    yield Model(backbone, side, checkpoint, picture, onnx, onnx.stat().st_size)
    onnx.unlink()


def score_of(printed: str) -> float:
    """In the table that `scrd-fast score` prints."""
    header, row = printed.strip().splitlines()
    return float(row.split(",")[header.split(",").index("score")])


@pytest.mark.parametrize("peer", list(PEERS)[:1] if QUICK else PEERS)
def test_first_score_against_peers(benchmark: Any, model: Model, peer: str) -> None:
    ours, theirs = model.ours("fp32"), model.peer(peer)
    score, other = score_of(run(ours).printed), float(run(theirs).printed)
    assert abs(score - other) <= 1e-4 * abs(other)
    times = time_in_turn([lambda: run(ours).seconds, lambda: run(theirs).seconds], ROUNDS)
    ratio = record(benchmark, f"fp32, {model.backbone}, {model.side} px", peer, times)
    judge(benchmark, ratio, None)
    repeat(benchmark, lambda: run(ours), 1, warm_up=0)


@pytest.mark.parametrize("read_from", ["disk"] if QUICK else ["memory", "disk"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_first_score(benchmark: Any, model: Model, precision: str, read_from: str) -> None:
    ours = model.ours(precision)
    run(ours)

    def timed() -> float:
        if read_from == "disk":
            forget(engine_file(model.checkpoint, precision))
        return run(ours).seconds

    times = time_in_turn([timed], ROUNDS)[:, 0]
    seconds = float(np.median(times)) / 1e3
    wanted = WANTED[model.backbone]
    benchmark.extra_info |= {
        "what": f"first score, {precision}, {model.backbone}, {model.side} px, file in"
                f" {read_from}", "ours_ms": seconds * 1e3, "peer": f"{wanted:g} s",
        "peer_ms": wanted * 1e3}
    print(f"\n{benchmark.name}: {seconds:.2f} s ({times.min() / 1e3:.2f} to"
          f" {times.max() / 1e3:.2f})")
    judge(benchmark, wanted / seconds, 1.0 if read_from == "memory" else None)
    repeat(benchmark, timed, 1, warm_up=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("what", ["peak memory", "resident memory"])
def test_memory(benchmark: Any, model: Model, precision: str, what: str) -> None:
    """The command line at most, and a process that has loaded an engine and scored once."""
    base, times = PEAK if what == "peak memory" else RESIDENT
    engine = str(engine_file(model.checkpoint, precision))
    command = [sys.executable, "-c", _PEAK, *model.ours(precision)] if what == "peak memory" else [
        sys.executable, "-c", _OURS, engine]
    found = float(run(command).printed) * 1024
    allowed = base + times * model.weights
    benchmark.extra_info |= {
        "what": f"{what} in MB, {precision}, {model.backbone}, {model.side} px",
        "peer": f"{base / 1e6:g} MB and {times:g} times the weights",
        "ours_ms": found / 1e6, "peer_ms": allowed / 1e6}
    print(f"\n{benchmark.name}: {found / 1e6:.0f} MB, {allowed / 1e6:.0f} allowed")
    judge(benchmark, allowed / found, 1.0)
    repeat(benchmark, lambda: run(command), 1, warm_up=0)
