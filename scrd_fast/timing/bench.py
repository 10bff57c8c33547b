"""How fast an engine is on this machine, and how near that is to what the machine allows."""

import json
import os
import platform
import queue
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scrd_fast import _native
from scrd_fast.backends.registry import gpu_of, native_precisions
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import load_engine
from scrd_fast.engine.manifest import Manifest, Work
from scrd_fast.errors import ScrdError, expect
from scrd_fast.machine import cpu_flags, this_machine
from scrd_fast.progress import Progress, silent
from scrd_fast.timing.measure import (
    LARGEST_COPY,
    cpu_limits,
    percentiles,
    random_images,
    repeated,
)

if TYPE_CHECKING:
    import torch

BATCHES = (1, 8, 32)
LOADS = (0.25, 0.5, 0.75, 0.9)
BUSY = 0.5  # load average per core before anything is timed, from which on the report says so

# A process of its own: what it takes to start is what a user waits for.
_START = r"""
import json, pathlib, re, sys, time
begun = time.perf_counter()
import numpy as np
import scrd_fast
path, device, trust, side = json.loads(sys.argv[1])
engine = scrd_fast.load_engine(path, device=device, trust=trust)
loaded = time.perf_counter()
engine.score(np.zeros((1, side, side, 3), np.uint8))
scored = time.perf_counter()
peak = re.search(r"VmHWM:\s*(\d+)", pathlib.Path("/proc/self/status").read_text())[1]
print(json.dumps({"load_s": loaded - begun, "first_score_s": scored - begun,
                  "peak_memory_mib": int(peak) / 1024}))
"""


@dataclass(frozen=True)
class Limit:
    """What one image takes at least at the CPU's measured rates: for its operations (by precision)
    and for reading the bytes of the weights."""

    operations: dict[str, float]
    arithmetic_ms: float
    weight_bytes: float
    memory_ms: float

    @property
    def bound(self) -> str:
        """What takes longer."""
        return "arithmetic" if self.arithmetic_ms >= self.memory_ms else "memory"

    def ms(self, batch: int = 1) -> float:
        """Of a batch, which needs to read the weights once."""
        return max(self.arithmetic_ms * batch, self.memory_ms)


@dataclass(frozen=True)
class Bench:
    """What was measured; see docs/performance.md.

    start: load_s, first_score_s (both from the start of a process's imports), peak_memory_mib;
    batches: batch, p50_ms, p90_ms, p99_ms, images_per_s, and share_of_limit where `limit` is
    known; loads: under images that arrive at random, load (share of capacity), images_per_s,
    p50_ms, p90_ms, p99_ms from arrival to score; rates: of `measure.cpu_limits`.
    """

    engine: dict[str, Any]
    environment: dict[str, Any]
    start: dict[str, float]
    batches: list[dict[str, Any]]
    loads: list[dict[str, Any]]
    rates: dict[str, float | None]
    limit: Limit | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def environment(device: "torch.device | None" = None) -> dict[str, Any]:
    """The machine and its libraries; busy: whether other work ran on it at that moment."""
    here = this_machine(device)
    load = os.getloadavg()[0]
    # Flat, as results were stored before machines had parts; on a CPU nothing is said of a GPU.
    machine = {name: value for name, value in asdict(here).items() if name != "gpu"}
    if here.gpu is not None:
        machine |= {"gpu": here.gpu.name, "cuda": here.gpu.cuda, "cudnn": here.gpu.cudnn,
                    "compute_capability": list(here.gpu.compute_capability)}
    return machine | {
        "cpu_flags": sorted(f for f in cpu_flags() if f.startswith(
            ("avx", "amx", "fma", "asimd", "bf16", "i8mm"))),
        "load_average": load,
        "busy": load > BUSY * here.cores,
        "threads": _native.threads(),
        "python": platform.python_version(),
        "torch": version("torch") if find_spec("torch") else None,
    }


_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


def limit_of(manifest: Manifest, rates: Mapping[str, float | None]) -> Limit | None:
    """What an engine on a CPU takes at least at the rates of `measure.cpu_limits`; None where one
    that counts is not known, or the engine file does not say what the network has to do."""
    work, copy = manifest.work, rates["copy"]
    if work is None or copy is None:
        return None
    base = "bf16" if "bf16" in native_precisions(manifest.backend) else "fp32"
    operations = {manifest.precision: work.operations}
    if work.left_out:
        operations[base] = operations.get(base, 0.0) + work.left_out
    if any(rates[kind] is None for kind in operations):
        return None
    arithmetic = sum(count / (rates[kind] or 1.0) for kind, count in operations.items())
    nbytes = weight_bytes(manifest, work)
    return Limit(operations, arithmetic * 1e3, nbytes, nbytes / copy * 1e3)


def weight_bytes(manifest: Manifest, work: Work) -> float:
    """Count the bytes that the weights of an engine take where they are read."""
    return work.weights * _BYTES[manifest.precision]


def _start(path: Path, device: str | None, trust: bool, side: int) -> dict[str, float]:
    arguments = json.dumps([str(path.resolve()), device, trust, side])
    done = subprocess.run([sys.executable, "-c", _START, arguments], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise ScrdError(f"{path}: a process that loads it failed: {done.stderr.strip()[-500:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _under_load(engine: Engine, batches: Sequence[Any], rate: float, seconds: float,
                seed: int) -> dict[str, float]:
    """Single images that arrive at random (Poisson), whether or not the last is done: times from
    when each was due to its score."""
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, max(20, round(rate * seconds))))
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def collect() -> list[float]:
        done = []
        while (pending := waiting.get()) is not None:
            pending.result()
            done.append(time.perf_counter())
        return done

    with ThreadPoolExecutor(1) as pool:
        collected = pool.submit(collect)
        start = time.perf_counter()
        try:
            for i, at in enumerate(due):
                time.sleep(max(0.0, start + at - time.perf_counter()))
                waiting.put(engine.submit(batches[i % len(batches)]))
        finally:
            waiting.put(None)
        done = np.array(collected.result())
    return percentiles((done - start - due) * 1e3) | {"images": float(len(due))}


def bench(
    path: str | os.PathLike[str], *, device: str | None = None, trust: bool = False,
    seconds: float = 60.0, progress: Progress = silent,
) -> Bench:
    """Time an engine file on this machine, from pixels to score and map.

    seconds: about how long in all, starting and warming up aside. device, trust: as in
    `load_engine`. Raises what `load_engine` does, InputError.
    """
    expect(1 <= seconds <= 3600, "seconds", "1 to 3600", seconds)
    file = Path(path)
    share = seconds / (len(BATCHES) + len(LOADS))
    total = 1 + len(BATCHES) + len(LOADS)
    progress(0, total, "loading")
    # Before the process that loads it to be timed: its errors are this function's.
    with load_engine(file, device=device, trust=trust) as engine:
        manifest, spec = engine.manifest, engine.spec
        place = gpu_of(manifest.backend, device)
        where = environment(place)
        progress(0, total, "starting a process")
        start = _start(file, device, trust, spec.input_size)
        rates, limit = ({}, None) if place is not None else _limit_here(manifest)
        rows: list[dict[str, Any]] = []
        for i, batch in enumerate(BATCHES):
            progress(1 + i, total, f"batches of {batch}")
            ms = repeated(engine.score, random_images(spec.input_size, 8, batch), seconds=share,
                          warmup=3, least=5)
            figures = percentiles(ms)
            rows.append({
                "batch": batch, **figures, "calls": len(ms),
                "images_per_s": batch * 1e3 / figures["p50_ms"],
                "share_of_limit": limit and limit.ms(batch) / figures["p50_ms"]})
        capacity = rows[0]["images_per_s"]
        loads: list[dict[str, Any]] = []
        images = random_images(spec.input_size, 8)
        for i, load in enumerate(LOADS):
            progress(1 + len(BATCHES) + i, total, f"{load:.0%} of capacity")
            figures = _under_load(engine, images, load * capacity, share, seed=i)
            loads.append({"load": load, "images_per_s": load * capacity, **figures})
    return Bench(
        engine={"path": str(file), "backend": manifest.backend, "precision": manifest.precision,
                "buckets": list(manifest.buckets), **asdict(manifest.model),
                "input_size": spec.input_size},
        environment=where, start=start, batches=rows, loads=loads, rates=rates, limit=limit)


def _limit_here(manifest: Manifest) -> tuple[dict[str, float | None], Limit | None]:
    """The CPU's rates, and the limit that they set for an engine."""
    rates = cpu_limits() if manifest.work is None else cpu_limits(
        min(weight_bytes(manifest, manifest.work), LARGEST_COPY))
    return rates, limit_of(manifest, rates)
