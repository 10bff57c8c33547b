"""The whole path on every class of CPU that this one can show: python -m benchmarks.classes [CLASS]

Its own class, and lesser ones under caps on the instructions that the libraries may use, each in
processes of its own. Every engine precision of a class is held against what a user would run
instead: the results agree first, then all are timed in turn. Stores a result per class.

onnxruntime cannot be capped, nor the few kernels that are OpenVINO's own and not oneDNN's.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.anomalib_peer import missing as anomalib_missing
from benchmarks.judge import LOOP_WANTED, PEERS_WANTED, aim
from benchmarks.models import engine_file, pictures, untrained
from benchmarks.results import kept, store, table
from benchmarks.size import BACKBONE, SIDE
from benchmarks.timing import noted, time_in_turn, told
from benchmarks.worker import Worker, assert_equal
from scrd_fast.backends.registry import native_precisions
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.machine import CAP, cpu_flags, why_no_vnni
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.bench import environment, limit_of
from scrd_fast.timing.measure import cpu_limits

ROUNDS = 10
PAUSE = 0.05  # seconds; so many processes have so many threads that spin after their work
LOOP = "published loop"


def _caps(onednn: str, ours: str) -> dict[str, str]:
    """Variables that keep oneDNN, our own code, PyTorch and MKL to an instruction set."""
    return {CAP: onednn, "SCRD_FAST_ISA": ours, "ATEN_CPU_CAPABILITY": ours,
            "MKL_ENABLE_INSTRUCTIONS": ours.upper()}


@dataclass(frozen=True)
class CpuClass:
    """CPUs that compute with the same instructions.

    needs: flags of a CPU that has them; caps: what keeps one of a higher class to them; peaks: the
    precisions whose arithmetic peak is this class's under the caps, of a CPU without tiles.
    """

    name: str
    needs: frozenset[str]
    caps: Mapping[str, str] = field(default_factory=dict)
    peaks: tuple[str, ...] = ("fp32", "bf16", "int8")


CLASSES = (
    CpuClass("AVX2", frozenset({"avx2", "fma"}), _caps("AVX2", "avx2"), ("fp32", "int8")),
    CpuClass("AVX2, VNNI", frozenset({"avx_vnni"}), _caps("AVX2_VNNI", "avx2"), ("fp32",)),
    CpuClass("AVX-512, VNNI", frozenset({"avx512_vnni"}), _caps("AVX512_CORE_VNNI", "avx512")),
    CpuClass("AVX-512, VNNI, BF16", frozenset({"avx512_vnni", "avx512_bf16"}),
             _caps("AVX512_CORE_BF16", "avx512")),
    CpuClass("AMX", frozenset({"amx_bf16", "amx_int8"})),
    CpuClass("arm64, dot product", frozenset({"asimddp"})),
)


def native_class(flags: frozenset[str]) -> CpuClass | None:
    """The highest class that a CPU with these flags is of; None of one that is of no class."""
    fitting = [each for each in CLASSES if each.needs <= flags]
    if fitting[-1:] and fitting[-1].caps.get("SCRD_FAST_ISA") == "avx2" and "avx512f" in flags:
        return None  # AVX-512 without VNNI
    return fitting[-1] if fitting else None


def shown_classes(flags: frozenset[str]) -> dict[str, Mapping[str, str]]:
    """Name of each class that a CPU with these flags shows -> the caps that it takes."""
    native = native_class(flags)
    return {each.name: {} if each is native else each.caps for each in CLASSES
            if each is native or (each.needs <= flags and each.caps)}


def class_of(where: Mapping[str, Any]) -> str | None:
    """The class that a stored environment shows; None of a CPU that is of none."""
    native = native_class(frozenset(where.get("cpu_flags", ())))
    return where.get("cpu_class") or (native.name if native else None)


def _peers(precision: str, base: str) -> dict[str, str]:
    """Kind of a worker -> what it is called; of what a precision is held against.

    base: the precision of those that can choose, and of a plain graph beside int8.
    """
    plain = base if precision == "int8" else precision
    anomalib = [] if anomalib_missing() else ["anomalib OpenVINO"]
    named = [LOOP, f"torch.compile {base}", "onnxruntime fp32", *anomalib]
    return {kind: kind for kind in named} | {f"static {plain}": "plain OpenVINO (static)"}


def _rates(shown: CpuClass, capped: bool) -> dict[str, float | None]:
    """What this CPU can do at most with the instructions of a class."""
    known = shown.peaks
    if capped and "amx_tile" in cpu_flags() and shown.caps["SCRD_FAST_ISA"] != "avx2":
        known = ("fp32",)  # the others' would be those of tiles
    return {kind: rate if not capped or kind in (*known, "copy") else None
            for kind, rate in cpu_limits().items()}


def _engines(folder: Path) -> dict[str, Path]:
    """An engine file per precision that this process computes in natively; where there is no VNNI
    int8 has other weights, else the files are the same in every class."""
    other = folder / "without-vnni"
    other.mkdir(exist_ok=True)
    return {precision: engine_file(untrained(
        BACKBONE, SIDE, other if precision == "int8" and why_no_vnni() else folder), precision,
        buckets=(1,))
        for precision in native_precisions("openvino")}


def measure(name: str, folder: Path) -> None:
    """Measure and store a class, under whose caps this process was started; folder: where
    engine files and checkpoints are made, or are already."""
    (shown,) = (each for each in CLASSES if each.name == name)
    caps = shown_classes(cpu_flags())[name]
    where = environment() | {"cpu_class": name, "caps": dict(caps)}
    checkpoint = untrained(BACKBONE, SIDE, folder)
    engines = _engines(folder)
    precisions = list(engines)
    base = "bf16" if "bf16" in precisions else "fp32"
    images = [image[None] for image in pictures(SIDE)]
    floats = [preprocess(image, ScoringSpec(input_size=SIDE)).numpy() for image in images]
    rates = [_rates(shown, bool(caps))]
    with ExitStack() as stack:
        workers = {precision: stack.enter_context(Worker("engine", path))
                   for precision, path in engines.items()}
        workers |= {kind: stack.enter_context(Worker(kind, checkpoint))
                    for kind in {k: "" for p in precisions for k in _peers(p, base)}}
        batches = {kind: floats if kind.startswith("static") else images for kind in workers}
        for k, image in enumerate(images):
            loop = workers[LOOP].score(image)
            for kind, worker in workers.items():
                answer, precision = worker.score(batches[kind][k]), kind.split()[-1]
                if kind.startswith("anomalib"):
                    assert answer.maps.shape == loop.maps.shape
                    assert np.isfinite(answer.maps).all()
                else:
                    assert_equal(answer, loop, "fp32" if kind == LOOP else precision,
                                 plain=kind.startswith("static"))
        times = dict(zip(workers, time_in_turn(
            [worker.timed(batches[kind]) for kind, worker in workers.items()], ROUNDS, block=3,
            warm_up=1, pause=PAUSE).T, strict=True))
    rates.append(_rates(shown, bool(caps)))
    best = {kind: max(r[kind] or 0.0 for r in rates) or None for kind in rates[0]}
    rows = []
    for precision in precisions:
        limit = limit_of(read_engine_file(engines[precision])[0], best)
        for kind, peer in _peers(precision, base).items():
            row = {"of": "engine", "name": f"{name}[{precision}-{kind}]",
                   **noted(precision, peer, np.stack([times[precision], times[kind]], axis=1))}
            if limit is not None:
                row["limit"] = {"by": limit.bound, "ms": limit.ms(),
                                "share": limit.ms() / row["ours_ms"]}
            wanted = LOOP_WANTED[precision] if kind == LOOP else (
                PEERS_WANTED.get(kind) if precision == precisions[0] else None)
            if wanted is not None and not caps:
                row |= aim(wanted)
            row["other_model"] = kind.startswith("anomalib")
            rows.append(row)
            print(told(row["name"], row), flush=True)
    print(f"{table(rows)}\n{store(where, rows, rates=best)}", flush=True)
    if any(kept(row) is False for row in rows):
        sys.exit(1)


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    """In the environment, which processes that are started inherit."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", metavar="CLASS", nargs="*")
    shown = shown_classes(cpu_flags())
    names = parser.parse_args().names or list(shown)
    if not shown.keys() >= set(names):
        parser.error(f"CLASS: expected some of {list(shown)}, got {names}")
    if capped := [name for name in _caps("", "") if name in os.environ]:
        parser.error(f"expected no cap on instructions from outside, got {', '.join(capped)}")
    good = True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _engines(folder)
        for name in names:
            print(f"{name}: {'stand-in' if shown[name] else 'natively'}", flush=True)
            with _set(shown[name]):
                process = multiprocessing.get_context("spawn").Process(
                    target=measure, args=(name, folder))
                process.start()
            process.join()
            good = good and process.exitcode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
