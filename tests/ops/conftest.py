"""Fixtures of the operations' tests."""

from collections.abc import Iterator

import pytest

from scrd_fast import _native
from tests.ops.each_impl import IMPLS


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
