"""Archives on one machine and on Ray: python -m benchmarks.archive

Marginal rates, so that start-up does not count: what the larger of two archives takes more than the
smaller. One machine and Ray come in turn, so that other work on the machine slows both; and one
raylet with all CPUs and two with half of them each, which share the work. Results are compared
before anything is believed.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from pyarrow import parquet

from benchmarks.models import engine_file, untrained

ROWS = 500  # of a shard
WANTED = 0.85  # of the one machine's rate, on Ray


def make_archives(folder: Path, sizes: tuple[int, int], side: int) -> list[Path]:
    """Manifests of so many PNG pictures each."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(max(sizes)):
        cv2.imwrite(str(folder / "images" / f"{number}.png"),
                    rng.integers(0, 256, (side, side), np.uint8))
    manifests = []
    for size in sizes:
        manifests.append(folder / f"{size}.csv")
        with manifests[-1].open("w", newline="") as file:
            csv.writer(file).writerows([("id", "path"), *(
                (number, f"images/{number}.png") for number in range(size))])
    return manifests


def run(manifest: Path, engine: Path, ray: str | None) -> tuple[float, list[float]]:
    """Seconds of the whole command, and the scores."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "scrd_fast", "score-archive", str(manifest), "--engine",
             str(engine), "--out", folder, "--rows", str(ROWS), "--quiet",
             *(() if ray is None else ("--ray", ray))], check=False, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        if done.returncode:
            raise SystemExit(done.stderr)
        table = parquet.read_table(Path(folder) / "scores", columns=["row", "score"])
        return seconds, table.sort_by("row")["score"].to_pylist()


@contextmanager
def start_raylets(count: int) -> Iterator[str]:
    """The address of a cluster on this machine that shares out its CPUs."""
    from ray.cluster_utils import Cluster

    # Ray's workers give way to all else by default, and the one machine's process does not.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - so it is spelt
    cpus = max((os.cpu_count() or 1) // count, 1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus})
    try:
        for _ in range(count - 1):
            cluster.add_node(num_cpus=cpus)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


def main() -> int:
    """Print images per second of each way, and the ratios to the one machine's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs=2, default=(1000, 5000))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=64)
    arguments = parser.parse_args()
    small, large = arguments.sizes
    with tempfile.TemporaryDirectory() as name, start_raylets(1) as one, start_raylets(2) as two:
        folder = Path(name)
        manifests = make_archives(folder, (small, large), arguments.side)
        engine = engine_file(untrained("resnet18", arguments.side, folder), "fp32")
        ways = {"one machine": None, "Ray": one, "Ray, two raylets": two}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.rounds):
            scores = []
            for way, address in ways.items():
                (first, _), (second, found) = (run(each, engine, address) for each in manifests)
                scores.append(found)
                rates[way].append((large - small) / (second - first))
            assert scores[0] == scores[1] == scores[2], "the same scores, bit for bit"
    base = np.array(rates["one machine"])
    for way, found in rates.items():
        ratios = np.array(found) / base
        print(f"{way:17} {np.median(found):7.1f} images/s, {np.median(ratios):4.0%} of one machine"
              f" ({ratios.min():.0%} to {ratios.max():.0%})")
    ratio = np.median(np.array(rates["Ray"]) / base)
    print(f"Ray: wanted {WANTED:.0%}: {'kept' if ratio >= WANTED else 'NOT KEPT'}")
    return int(ratio < WANTED)


if __name__ == "__main__":
    sys.exit(main())
