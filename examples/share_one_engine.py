"""One engine for many users: threads, batches that are handed in at once, other processes.

    python examples/share_one_engine.py model.scrd images/
"""

import multiprocessing
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import scrd_fast


def use(given: scrd_fast.Engine) -> None:
    global engine  # one per process
    engine = given


def score(path: Path) -> float:
    return float(engine.score([path], maps=False).scores[0])


if __name__ == "__main__":  # not in spawned processes, which import this file
    use(scrd_fast.load_engine(sys.argv[1]))
    paths = sorted(Path(sys.argv[2]).rglob("*.png"))
    # Any number of threads may call one engine; it scores their batches one after the other.
    with ThreadPoolExecutor(4) as threads:
        by_threads = list(threads.map(score, paths))
    # submit() returns at once, result() waits. It takes pixels; a stream hands out those it read.
    pending = [engine.submit([item.image], maps=False) for item in engine.stream(paths)]
    by_submit = [float(each.result().scores[0]) for each in pending]
    # A pickled engine is its file's name: each process loads it once. Spawn them, never fork.
    with multiprocessing.get_context("spawn").Pool(2, use, (engine,)) as processes:
        by_processes = processes.map(score, paths)
    for row in zip(paths, by_threads, by_submit, by_processes, strict=True):
        print(*row, sep=",")
