"""The distances' plugin, without TensorRT: its PTX, and the numbers of its kernel."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from scrd_fast.backends.tensorrt.plugin import (
    TENSORS,
    combination,
    compile_ptx,
    programs,
    strip_hidden_parameters,
)
from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.kernels.anomaly_map import (
    DISTANCE_CONFIGS,
    cosine_distances,
    plugin_distances_kernel,
)
from tests.conftest import ROOT

PTX = """.version 8.0
.visible .entry kernel(
\t.param .u64 .ptr .global .align 1 kernel_param_0,
\t.param .u64 .ptr .global .align 1 kernel_param_1,
\t.param .u64 .ptr .global .align 1 kernel_param_10
)
{
\tld.param.b64 %rd1, [kernel_param_0];
\tld.param.b64 %rd2, [kernel_param_10];
}
"""


@pytest.mark.slow
def test_compiled_for_every_generation():
    """Nine tensors and nothing else, no spills, little shared memory."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "tests.tensorrt.assemble_plugin"], cwd=ROOT,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["sm"] for row in rows} == {80, 90, 100}
    assert {row["dtype"] for row in rows} == {"fp32", "fp16", "bf16"}
    for row in rows:
        assert row["parameters"] == [".u64"] * TENSORS, row
        assert row["named"], row
        assert row["shared"] <= 48 * 1024, row
        assert row["threads_in_ptx"] == [str(row["threads"])], row
        assert not row["paths"], row  # of the machine that builds a plan
        assert "0 bytes spill stores, 0 bytes spill loads" in row["ptxas"], row


def test_a_hidden_parameter_is_stripped_where_nothing_reads_it():
    kept = strip_hidden_parameters(PTX.replace("[kernel_param_10]", "[kernel_param_1]"), 2)
    assert re.findall(r"\.param \.u64 .* (\w+)", kept) == ["kernel_param_0", "kernel_param_1"]


@pytest.mark.parametrize(("declared", "reason"), [
    (2, "reads its hidden parameter kernel_param_10"), (4, "at least 4 parameters, got 3")])
def test_ptx_that_cannot_be_launched(declared, reason):
    with pytest.raises(BackendUnavailable, match=reason):
        strip_hidden_parameters(PTX, declared)


def test_bad_arguments():
    with pytest.raises(InputError, match=r"^dtype: expected one of"):
        compile_ptx(90, "int8", (1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(("dtype", "channels", "formats"), [
    ("fp32", (7, 5, 3), "LINEAR|HWC"), ("fp16", (64, 128, 256), "LINEAR|HWC8"),
    ("bf16", (64, 128, 256), "LINEAR|HWC8"), ("fp16", (64, 12, 256), "LINEAR")])
def test_formats_are_those_without_padding(dtype, channels, formats):
    types, layouts = combination(dtype, channels)
    assert types == ",".join([dtype.upper()] * 6 + ["FP32"] * 3)
    assert layouts == ",".join([formats] * 6 + ["LINEAR"] * 3)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_plugins_kernel_gives_the_distances(make_features, dtype, last):
    """As TensorRT launches it, against the formula in float64; NaN where a feature is NaN."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layout = torch.channels_last if last else torch.contiguous_format
    sides, channels = (12, 6, 3), (40, 24, 16)
    teacher, student = (make_features(2, sides, seed, dtype, channels) for seed in (1, 2))
    teacher[0][1, 3, 5, 5] = float("nan")
    maps = [m.to(device).contiguous(memory_format=layout) for m in (*teacher, *student)]
    outputs = [torch.empty((2, side, side), device=device) for side in sides]
    pixels, config = [side**2 for side in sides], DISTANCE_CONFIGS[0]
    plugin_distances_kernel[(2 * programs(pixels, last=last),)](
        *maps, *outputs, *channels, *pixels, LAST=last, **config.kwargs,
        num_warps=config.num_warps)
    others = cosine_distances(maps[:3], maps[3:])
    for got, other, t, s in zip(outputs, others, teacher, student, strict=True):
        expected = 1 - torch.cosine_similarity(t.double(), s.double(), 1)
        torch.testing.assert_close(got.cpu().double(), expected, rtol=0, atol=2e-6, equal_nan=True)
        torch.testing.assert_close(got, other, rtol=0, atol=2e-6, equal_nan=True)
    assert int(outputs[0].isnan().sum()) == 1
