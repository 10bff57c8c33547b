"""scrd-fast bench: figures of an engine, and the limits that they are held against."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.building.work import count_work
from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.errors import InputError, ScrdError
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.quantize import STEM, Quantisation, Ranges
from scrd_fast.machine import Gpu, this_machine
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing import bench as benching
from scrd_fast.timing.bench import BATCHES, LOADS, bench, limit_of
from scrd_fast.timing.measure import cpu_limits

SPEC = ScoringSpec(input_size=64)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SCRD("resnet18").eval()


def test_operations_are_those_that_pytorch_counts(model):
    """Transposed convolutions are written as plain ones in the graph, which cost the same."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = FlopCounterMode(display=False)
    with torch.no_grad(), counted:
        model(torch.zeros(1, 3, 64, 64))
    proto = build_graph(model, SPEC)
    whole = count_work(proto, SPEC, None)
    assert whole.operations == pytest.approx(counted.get_total_flops(), rel=0.01)
    assert whole.left_out == 0
    assert whole.weights == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.02)
    parts = count_work(proto, SPEC, Quantisation(Ranges({}, {}), (STEM,)))
    stem, shortcut = 2 * 32 * 32 * 64 * 3 * 7 * 7, 2 * 2 * 2 * 512 * 768
    assert parts == replace(whole, operations=whole.operations - stem - shortcut,
                            left_out=stem + shortcut)


def test_a_limit(small_file):
    manifest, _ = read_engine_file(small_file)
    work = manifest.work
    slow = {"fp32": work.operations / 2, "bf16": None, "int8": None, "copy": 1e30}
    limit = limit_of(manifest, slow)
    assert (limit.bound, limit.ms()) == ("arithmetic", pytest.approx(2000))
    assert limit.ms(8) == pytest.approx(16000)
    limit = limit_of(manifest, slow | {"copy": 4 * work.weights / 3})
    assert (limit.bound, limit.ms()) == ("memory", pytest.approx(3000))
    assert limit.ms(8) == pytest.approx(16000), "the weights are read once"
    assert limit_of(manifest, slow | {"fp32": None}) is None
    assert limit_of(replace(manifest, work=None), slow) is None


@pytest.mark.slow
def test_limits_of_this_cpu():
    rates = cpu_limits()
    assert rates["fp32"] is None or 1e9 < rates["fp32"] < 1e14
    assert 1e8 < rates["copy"] < 1e13
    for lower, higher in (("fp32", "bf16"), ("bf16", "int8")):
        if rates[lower] and rates[higher]:
            assert rates[lower] < rates[higher]


@pytest.mark.slow
def test_figures_of_an_engine(small_file):
    told = []
    found = bench(small_file, seconds=1, progress=lambda *step: told.append(step))
    assert [row["batch"] for row in found.batches] == list(BATCHES)
    assert [row["load"] for row in found.loads] == list(LOADS)
    for row in [*found.batches, *found.loads]:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
    for row in found.batches:
        assert row["calls"] >= 5
        if found.limit is not None:
            # A limit that an engine beats is none; other work may have slowed what measured it.
            assert 4 * row["p50_ms"] > row["batch"] * found.limit.arithmetic_ms
            assert row["share_of_limit"] == found.limit.ms(row["batch"]) / row["p50_ms"]
    assert 0 < found.start["load_s"] < found.start["first_score_s"]
    assert found.start["peak_memory_mib"] > 50
    assert found.environment["cores"] >= 1
    assert [step[0] for step in told] == sorted(step[0] for step in told)
    assert all(step[0] < step[1] for step in told)
    assert json.loads(json.dumps(found.to_dict()))["engine"]["precision"] == "fp32"
    with pytest.raises(InputError, match=r"^seconds: expected 1 to 3600, got 0"):
        bench(small_file, seconds=0)
    with pytest.raises(ScrdError, match="device"):
        bench(small_file, device="foo")


@pytest.mark.slow
def test_times_under_load_count_from_the_arrival(small_file):
    """Beyond its capacity an engine falls behind more and more, also where it lets no image wait
    inside: times from the submission would not show that."""

    class OneAtATime:
        def submit(self, batch):
            pending = engine.submit(batch)
            pending.result()
            return pending

    images = benching.random_images(64, 2)
    with scrd_fast.load_engine(small_file) as engine:
        quick = benching.percentiles(benching.repeated(engine.score, images, seconds=0.2))["p50_ms"]
        late = benching._under_load(OneAtATime(), images, 2e4 / quick, 25 * quick / 1e3, seed=0)
        with pytest.raises(InputError):
            benching._under_load(engine, [np.zeros((1, 0, 0))], 1e3, 0.01, seed=0)
    assert late["images"] == 500
    assert late["p90_ms"] > 20 * quick


@pytest.mark.slow
def test_the_command_line(small_file, tmp_path):
    out = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "scrd_fast", "bench", small_file, "--seconds", "1", "--json", out],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "resnet18 at 64 px" in done.stdout
    assert "images/s" in done.stdout
    stored = json.loads(out.read_text())
    assert f"{stored['batches'][0]['p50_ms']:.2f}" in done.stdout
    missing = subprocess.run([sys.executable, "-m", "scrd_fast", "bench", tmp_path / "no.scrd"],
                             capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")


def test_the_environment_is_flat(monkeypatch):
    """As in results that were stored before; on a CPU nothing is said of a GPU."""
    found = benching.environment()
    assert "gpu" not in found
    gpu = Gpu("NVIDIA H100", (9, 0), "13.0", 91900)
    monkeypatch.setattr(benching, "this_machine",
                        lambda device: replace(this_machine(), gpu=gpu))
    found = benching.environment(torch.device("cpu"))
    assert (found["gpu"], found["compute_capability"]) == ("NVIDIA H100", [9, 0])
    assert (found["cuda"], found["cudnn"]) == ("13.0", 91900)
