"""scrd_fast against the real Python bindings of TensorRT 10 and 11."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.tensorrt.check_bindings import chains


@pytest.mark.slow
@pytest.mark.parametrize("check", ["names", "plugin"])
def test_both_versions_have_what_is_used(bindings: Path, check: str):
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.tensorrt.check_bindings", check, str(bindings)], cwd=ROOT,
        env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_uses_are_found_in_the_source():
    source = """
import tensorrt as trt
class Log(trt.ILogger):
    def log(self, severity):
        import tensorrt.plugin as p
        return severity is trt.ILogger.ERROR or p.op.x(self.trt.y)
"""
    assert set(chains(source)) == {
        ("tensorrt", "ILogger"), ("tensorrt", "ILogger", "ERROR"),
        ("tensorrt", "plugin", "op"), ("tensorrt", "plugin", "op", "x"), ("tensorrt", "y")}
