"""Every kernel, compiled for three GPU generations: no spills, at most 48 KB of shared memory, and
as much as a GPU of any of them has for the one whose tiles come from there."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT

SHARED = 48 * 1024
# What an RTX 30, the smallest here, gives a program.
MORE = {"pointwise_kernel": 99 * 1024}


pytestmark = pytest.mark.slow  # half a minute of compiling


@pytest.fixture(scope="module")
def compiled() -> list[dict[str, Any]]:
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "tests.kernels.compile_kernels"], cwd=ROOT,
                          env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_is_compiled_for_every_generation(compiled):
    sources = "".join(f.read_text() for f in (ROOT / "scrd_fast/kernels").glob("*.py"))
    names = {row["kernel"] for row in compiled}
    assert names == {line.split("(")[0].removeprefix("def ")
                     for line in sources.split("\n") if line.startswith("def ")
                     and line.split("(")[0].endswith("_kernel")}
    for name in names:
        assert {row["sm"] for row in compiled if row["kernel"] == name} == {80, 90, 100}


def test_no_spills_and_little_shared_memory(compiled):
    for row in compiled:
        assert row["STACK"] == row["LOCAL"] == 0, row
        assert row["shared"] <= MORE.get(row["kernel"], SHARED), row


def test_maps_are_read_16_bytes_at_a_time(compiled):
    for name in ("distances_kernel", "plugin_distances_kernel", "partial_sums_kernel",
                 "student_gradient_kernel", "eight_bits_kernel"):
        for row in compiled:
            assert row["kernel"] != name or row["loads_of_16_bytes"] > 0, row


def test_the_map_is_made_by_tensor_cores(compiled):
    rows = [row for row in compiled if row["kernel"] == "combine_kernel"
            and "True" in (row["arguments"]["MAPS"], row["arguments"]["LARGEST"])]
    for row in rows:
        assert row["tensor_cores"] == ["mma"], row  # those of a warp group race on Hopper


def test_convolutions_are_made_by_tensor_cores(compiled):
    """Those of a warp group on Hopper: each loop has one product a step, which does not race."""
    rows = [row for row in compiled if row["kernel"] == "pointwise_kernel"]
    assert all(row["tensor_cores"] for row in rows)
    assert {name for row in rows if row["sm"] == 90 for name in row["tensor_cores"]} == {
        "mma", "wgmma"}


def test_float8_is_rounded_to_the_nearest(compiled):
    """To the largest where it is beyond; by PTX NaN stays NaN in this conversion."""
    rows = [row for row in compiled if row["float8"]]
    assert {row["sm"] for row in rows} == {90, 100}
    for row in rows:
        assert row["kernel"] == "eight_bits_kernel"
        assert row["float8"] == ["cvt.rn.satfinite.e4m3x2.f32"]


def test_noise_is_rounded_as_the_original(compiled):
    """A fused product and sum would be rounded once, and move pixels across the borders where the
    noise jumps."""
    for kernel in ("simplex_noise_kernel", "add_noise_kernel"):
        assert {row["fma_f64"] for row in compiled if row["kernel"] == kernel} == {0}
