"""The distances' plugin, without TensorRT: its PTX, and the numbers of its kernel."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from scrd_fast.engine.backends.tensorrt_plugin import compile_ptx, strip_hidden_parameters
from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.kernels.anomaly_map import cosine_distances, plugin_distances_kernel
from scrd_fast.ops.implementations import interpreted
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
        assert row["parameters"] == 9, row
        assert row["named"], row
        assert row["shared"] <= 48 * 1024, row
        assert row["threads"] % 32 == 0, row
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


@pytest.mark.skipif(not interpreted(), reason="the kernel's own launcher is held to numbers here")
@pytest.mark.parametrize("last", [False, True])
def test_the_plugins_kernel_gives_the_distances(last):
    shapes = ((33, 8), (20, 4), (17, 2))
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, c, side, side, generator=generator) for c, side in shapes * 2]
    if last:
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    expected = cosine_distances(maps[:3], maps[3:])
    outputs = [torch.empty_like(e) for e in expected]
    tile = plugin_distances_kernel.configs[0].kwargs["SLOW" if last else "FAST"]
    programs = 2 * sum(-(-side**2 // tile) for _, side in shapes)
    plugin_distances_kernel[(programs,)](
        *maps, *outputs, *(c for c, _ in shapes), *(side**2 for _, side in shapes), LAST=last)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.equal(ours, theirs)
