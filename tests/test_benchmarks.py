"""A quick run of the benchmarks, as they are but for a small model and two turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import report, results
from benchmarks.classes import shown_classes
from benchmarks.gpu_lab import EXPERIMENTS, run_apart
from scrd_fast.machine import cpu_flags

ROOT = Path(__file__).parent.parent


def quick_environment() -> dict[str, str]:
    """As it is outside of the tests: pytest-benchmark measures nothing inside a worker of
    pytest-xdist, which a benchmark is not."""
    return {name: value for name, value in os.environ.items()
            if not name.startswith("PYTEST_XDIST_") and name != "OMP_NUM_THREADS"} | {
                "SCRD_FAST_QUICK_BENCHMARKS": "1"}


def run_quickly(stored: Path, *options: str) -> str:
    """The report on a run of the benchmarks, every row of which is held to what it must have."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", *options,
         f"--benchmark-json={stored}"], cwd=ROOT, capture_output=True, text=True, timeout=600,
        check=False, env=quick_environment())
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    raw = json.loads(stored.read_text())
    rows = results.figures(raw)
    files = {path.stem.removeprefix("test_bench_") for path in ROOT.glob("benchmarks/test_*.py")}
    assert {row["of"] for row in rows} >= {name for name in files if not name.endswith("_cuda")}
    assert not any(row.get("judged") for row in rows)  # so small a run says nothing of the speed
    result = {"environment": raw["scrd_fast"]["environment"], "commit": "", "figures": rows}
    assert "<svg" in report.web_page(raw, result)
    return report.markdown(result)


@pytest.mark.slow
def test_a_benchmark_of_each_file_runs_and_its_peers_agree(tmp_path):
    run_quickly(tmp_path / "raw.json", "-p", "tests.support.first_of_each_file")


@pytest.mark.slow
@pytest.mark.skipif(len(shown_classes(cpu_flags())) < 2, reason="this CPU shows no lesser class")
def test_a_class_under_its_caps():
    """The least that this CPU shows, whose peers agree there; then it is in the table."""
    name, caps = next(iter(shown_classes(cpu_flags()).items()))
    run = subprocess.run([sys.executable, "-m", "benchmarks.classes", name], cwd=ROOT, text=True,
                         capture_output=True, timeout=600, check=False, env=quick_environment())
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    result = results.stored(Path(run.stdout.splitlines()[-1]))
    where, rows = result["environment"], result["figures"]
    assert (where["cpu_class"], where["caps"]) == (name, caps)
    assert not any("wanted" in row for row in rows), "nothing is wanted of a stand-in"
    assert {row["what"] for row in rows} == {"fp32", "int8"}
    assert {row["peer"] for row in rows} >= {
        "published loop", "torch.compile fp32", "onnxruntime fp32", "plain OpenVINO (static)"}
    assert {row["what"] for row in rows if row["limit"]["share"] > 0} == {"fp32", "int8"}


@pytest.mark.slow
def test_every_benchmark_runs_and_every_peer_agrees(tmp_path):
    text = run_quickly(tmp_path / "raw.json")
    assert "published loop" in text
    assert "images that arrive at random" in text
    assert "mode, best precision" in text


def test_the_list_of_experiments():
    """The short ones first, and each told in a line of the help."""
    names = list(EXPERIMENTS)
    assert (names[0], names[-1], len(names)) == ("baseline", "compile", 16)
    assert {"nan", "rewrites", "heuristics", "forks", "ways", "eight_bits"} < set(names)
    assert all(each.about.endswith(".") for each in EXPERIMENTS.values())


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_experiments_need_a_gpu():
    """One line says so, and a process that fails or hangs costs its own time alone."""
    command = [sys.executable, "-m", "benchmarks.gpu_lab"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu-lab: PyTorch ")
    assert done.stderr.count("\n") == 1
    assert run_apart("baseline", 60)["failed"].startswith("gpu-lab: PyTorch ")
    assert run_apart("baseline", 0.01) == {"failed": "no result within 0 s"}
    unknown = subprocess.run([*command, "magic"], cwd=ROOT, capture_output=True, text=True,
                             check=False)
    assert "expected experiments of baseline, nan, " in unknown.stderr
