"""Fixtures of the operations' tests."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from scrd_fast import _native
from scrd_fast.ops.preprocess import preprocess
from tests.ops.each_impl import IMPLS
from tests.ops.preprocessing import on_gpu

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m picks by the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU, where Triton's interpreter takes the time of all else together: of each
    test's kernels one case per dtype stays in `make test`, the others become slow."""
    if torch.cuda.is_available():
        return
    seen = set()
    for item in items:
        if not isinstance(item, pytest.Function) or not item.get_closest_marker("gpu"):
            continue
        if item.path.parent == HERE and hasattr(item, "callspec"):
            dtype = str(next((item.callspec.params[name] for name in ("dtype", "case")
                              if name in item.callspec.params), None))
            kind = (item.path, item.originalname, dtype)
            if kind in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(kind)


@pytest.fixture(params=IMPLS)
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """What to pass as `impl`: "reference", and "native" once per instruction set of this CPU,
    which is in use during the test. For an implementation's own dtypes see each_impl."""
    name, _, isa = request.param.partition("-")
    before = _native.isa()
    if isa:
        _native.set_isa(isa)
    yield name
    _native.set_isa(before)


@pytest.fixture(params=_native.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this CPU, in use during the test."""
    before = _native.isa()
    _native.set_isa(request.param)
    yield request.param
    _native.set_isa(before)


@pytest.fixture
def keep_threads() -> Iterator[None]:
    """Puts back the number of threads."""
    before = _native.threads()
    yield
    _native.set_threads(before)


@pytest.fixture
def run(impl: str) -> Callable[..., torch.Tensor]:
    """preprocess by each implementation. For "triton" arrays become tensors, and all tensors go to
    the GPU where there is one."""
    return partial(on_gpu if impl == "triton" else preprocess, impl=impl)
