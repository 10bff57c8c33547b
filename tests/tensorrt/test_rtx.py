"""NVIDIA's parser and builder on graphs of ours, without a GPU: those of TensorRT for RTX.

In processes of their own: a mistake in the order in which its objects are let go ends the process.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT for RTX is not installed: pip install -e '.[tensorrt-rtx]'")


def run(check: str) -> Any:
    done = subprocess.run([sys.executable, "-m", "tests.tensorrt.check_rtx", check], cwd=ROOT,
                          capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout}{done.stderr}"
    assert "Exception caught" not in done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_it_has_what_is_used():
    assert run("names") == []


@pytest.mark.slow
def test_plans_of_every_precision():
    """With an error recorder on the builder the process ended in SIGSEGV."""
    plans = run("plans")
    assert set(plans) == {"fp32", "fp16", "bf16", "int8", "fp8"}
    assert plans["fp32"] > plans["fp16"] > plans["int8"] > 2**20
    assert plans["fp32"] > plans["bf16"] > plans["fp8"] > 2**20


@pytest.mark.slow
def test_bytes_that_are_no_plan():
    assert run("invalid") == ["it is damaged"]


@pytest.mark.slow
def test_builds_that_fail():
    said = run("failures")
    assert "cannot take this network:\n" in said["unknown"]
    assert "(NoSuchOperator): " in said["unknown"]
    assert "Dimension mismatch for tensor network_input" in said["another"]
    assert said["stopped"].startswith("TensorRT: ")
    assert said["after"].endswith(" bytes")


@pytest.mark.slow
def test_an_interrupt_ends_the_build():
    """Raised in a callback of TensorRT, it was printed there and forgotten."""
    assert run("interrupt") == {"heard": True, "handler is back": True, "builds again": True}


@pytest.mark.slow
def test_the_exported_graph_is_taken_for_any_batch():
    assert run("export") == {
        "errors": [], "said": [],
        "outputs": ["score (-1,)", "map (-1, 64, 64)", "scale_weights (-1, 3)"]}
