"""Fixtures that more than one benchmark uses, and the machine in what pytest-benchmark stores."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.models import untrained
from benchmarks.results import commit
from benchmarks.size import BACKBONE, SIDE
from scrd_fast import _native
from scrd_fast.timing.bench import environment
from scrd_fast.timing.measure import cpu_limits

_BEFORE = pytest.StashKey[dict[str, Any]]()


def pytest_configure(config: pytest.Config) -> None:
    """Look at the machine and the tree before anything is timed: afterwards one is busy with that,
    and the other may have moved on."""
    config.stash[_BEFORE] = {"environment": environment(), "commit": commit()}


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["scrd_fast"] = config.stash[_BEFORE]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For checkpoints and engines."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="session")
def checkpoint(folder: Path) -> Path:
    """An untrained Wide-ResNet-50-2 for 256 x 256 pixels; a small model in a quick run."""
    return untrained(BACKBONE, SIDE, folder)


@pytest.fixture(scope="session")
def rates() -> dict[str, float | None]:
    """What this CPU can do at most, see measure.cpu_limits."""
    return cpu_limits()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """2 threads for PyTorch and the native core; put back, as is its instruction set."""
    before = torch.get_num_threads(), _native.threads(), _native.isa()
    torch.set_num_threads(2)
    _native.set_threads(2)
    yield
    torch.set_num_threads(before[0])
    _native.set_threads(before[1])
    _native.set_isa(before[2])
