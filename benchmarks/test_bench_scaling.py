"""Images per second of the best precision against threads, streams and the size of a batch.

Each point in a process of its own that may use so many CPUs: mode "latency" puts all of them to one
batch, "throughput" lets several streams share them. Nothing is judged.
"""

import multiprocessing
import os
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.models import engine_file, pictures
from benchmarks.size import QUICK, SIDE
from benchmarks.timing import repeat
from scrd_fast.backends.registry import MODES, native_precisions
from scrd_fast.engine.load import load_engine

BATCHES = (8,) if QUICK else (1, 8)
AHEAD = 4  # batches that wait for the engine, so that no stream has to
SECONDS = 0.2 if QUICK else 1.5
WINDOWS = 3


def _measure(path: Path, mode: str, batch: int, pipe: Connection) -> None:
    images = np.concatenate([pictures(SIDE)] * batch)[:batch]
    with load_engine(path, mode=mode) as engine:
        waiting = deque(engine.submit(images) for _ in range(AHEAD))
        rates = []
        for _ in range(1 + WINDOWS):
            start, done = time.perf_counter(), 0
            while time.perf_counter() - start < SECONDS or not done:
                waiting.popleft().result()
                done += batch
                waiting.append(engine.submit(images))
            rates.append(done / (time.perf_counter() - start))
        for last in waiting:
            last.result()
    pipe.send(float(np.median(rates[1:])))


def images_per_s(path: Path, threads: int, mode: str, batch: int) -> float:
    """Of an engine whose process is bound to `threads` CPUs."""
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(path, mode, batch, theirs), daemon=True)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:threads])  # which the process inherits
    try:
        process.start()
    finally:
        os.sched_setaffinity(0, before)
    theirs.close()
    rate: float = pipe.recv()
    process.join()
    return rate


def test_threads_streams_and_batches(benchmark: Any, checkpoint: Path) -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system binds no process to CPUs")
    path = engine_file(checkpoint, native_precisions("openvino")[0])
    available = len(os.sched_getaffinity(0))
    threads = sorted({*(2**k for k in range(available.bit_length()) if 2**k <= available),
                      available})
    rows = []
    for mode in MODES:
        for batch in BATCHES:
            for count in threads[-1:] if QUICK else threads:
                rate = images_per_s(path, count, mode, batch)
                rows.append({"mode": mode, "batch": batch, "threads": count, "images_per_s": rate})
                print(f"\n{mode}, batches of {batch}, {count} threads: {rate:.1f} images/s", end="")
    print()
    benchmark.extra_info["scaling"] = rows
    with load_engine(path) as engine:
        repeat(benchmark, lambda: engine.score(pictures(SIDE, 1)), 12)
