"""Fixtures that more than one test file uses."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parent.parent

# Before anything imports Triton: without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Some tests import openvino, which would send an event without this (see tests/test_quiet.py).
sys.modules.setdefault("openvino_telemetry", None)

# A shell that starts this in the background has its programs ignore Ctrl-C, and theirs would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.support.models import (  # noqa: E402, F401 - fixtures of every test
    large,
    large_path,
    probe,
    small,
    small_file,
    small_files,
    small_path,
    state_of_its_own,
    trained,
)

MakeFeatures = Callable[..., list[Tensor]]


# The longest tests, which come first: else one process would still run one when the others are
# done.
LONG = ("test_demo.py", "test_examples.py", "test_run.py", "test_engine.py", "test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture
def make_features() -> MakeFeatures:
    """Three random feature maps (n, channels[k], sides[k], sides[k])."""

    def make(
        n: int, sides: tuple[int, int, int], seed: int, dtype: torch.dtype = torch.float64,
        channels: tuple[int, int, int] = (7, 5, 3),
    ) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.randn(n, c, side, side, generator=generator, dtype=torch.float64).to(dtype)
            for c, side in zip(channels, sides, strict=True)
        ]

    return make


@pytest.fixture
def run_with_file_limit() -> Callable[[str], str]:
    """Run Python code in a process that may write 64 KiB per file; returns what it prints.

    Writing more fails there as on a full disk. Each line of the code is run at top level.
    """
    if sys.platform == "win32":
        pytest.skip("Windows has no limit on the size of files")

    def run(code: str) -> str:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        done = subprocess.run([sys.executable, "-c", limit + code], cwd=ROOT, timeout=120,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def chromium():
    """One for all tests of a process, which may leave anything in its log."""
    from tests.support.browser import CHROMIUM, DRIVER, Browser

    if not (CHROMIUM and DRIVER):
        pytest.skip("needs Chromium and its driver (Debian: chromium, chromium-driver)")
    browser = Browser()
    yield browser
    browser.driver.quit()
