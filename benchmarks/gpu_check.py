"""Runs everything that needs a GPU, in under 8 minutes: python -m benchmarks.gpu_check [SECONDS]

First the tests marked gpu, side by side where pytest-xdist is installed, then the benchmarks, those
that compile for minutes last, one by one and only for as long as there is time. Stores the result
(benchmarks/results.py) and prints a short table. Downloads nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import figures, store, table
from scrd_fast.backends.registry import cuda_missing
from scrd_fast.timing.bench import environment

SECONDS = 420  # and less than a minute before them for the C++ extension
FOR_BENCHMARKS = 120  # of them, which the tests may not take
TESTS = [
    "tests/kernels", "tests/convolutions", *(f"tests/ops/test_{name}.py" for name in (
        "anomaly_map", "simplex_noise", "add_noise", "preprocess", "contrastive_loss")),
    *(f"tests/{name}.py" for name in (
        "backends/test_torch_cuda", "backends/test_tensorrt", "engine/test_engine",
        "engine/test_scorer", "building/test_contract", "training/test_gpu")),
]
BENCHMARKS = sorted(str(p) for p in Path(__file__).parent.glob("test_bench_*_cuda.py"))
COMPILING = ("test_against_torch_compile[64]", "test_the_network_compiled",
             "test_against_torch_compile[1]")


def side_by_side() -> list[str]:
    """Options for pytest that spread the tests over the cores: most of their time is compiling."""
    workers = (os.cpu_count() or 1) - 2
    return ["-n", str(workers), "--dist", "worksteal"] if find_spec("xdist") and workers > 1 else []


def run_pytest(arguments: list[str], seconds: float) -> tuple[str, dict[str, Any]]:
    """"passed", "failed" or "out of time", and what pytest-benchmark stored."""
    with tempfile.TemporaryDirectory() as folder:
        stored = Path(folder) / "benchmarks.json"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   f"--benchmark-json={stored}", *arguments]
        alone = {"OMP_NUM_THREADS": "1"} if "-n" in arguments else {}  # a core for each
        try:
            code = subprocess.run(command, timeout=max(seconds, 1), check=False,
                                  env=os.environ | alone).returncode
        except subprocess.TimeoutExpired:
            return "out of time", {}
        text = stored.read_text() if stored.exists() else ""
        return ("failed" if code else "passed"), json.loads(text) if text else {}


def gpu_environment() -> dict[str, Any]:
    import triton

    properties = torch.cuda.get_device_properties(0)
    return environment(torch.device("cuda", 0)) | {
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": properties.total_memory / 2**30, "triton": triton.__version__}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS)
    seconds = parser.parse_args().seconds
    if missing := cuda_missing(None):
        print(f"gpu-check: {missing}", file=sys.stderr)
        return 2
    where = gpu_environment()  # before anything is timed
    began = time.monotonic()

    def left() -> float:
        return seconds - (time.monotonic() - began)

    engine = next(file for file in BENCHMARKS if "engine" in file)
    plan = {
        "tests": [*side_by_side(), "-m", "gpu and not slow", *TESTS],
        "benchmarks": ["-s", "-m", "gpu and not slow", *BENCHMARKS],
        **{name: ["-s", "-m", "gpu and slow", f"{engine}::{name}"] for name in COMPILING},
    }
    steps, rows = {}, []
    for name, arguments in plan.items():
        print(f"gpu-check: {name}, {left():.0f} s left", flush=True)
        kept = FOR_BENCHMARKS if name == "tests" else 0
        steps[name], raw = run_pytest(arguments, left() - kept)
        rows += figures(raw)
    out = store(where, rows, seconds=seconds - left(), steps=steps)
    print(f"\n{table(rows)}\n{steps}\n{out}")
    needed = steps["tests"] == steps["benchmarks"] == "passed"
    return 0 if needed and "failed" not in steps.values() else 1


if __name__ == "__main__":
    sys.exit(main())
