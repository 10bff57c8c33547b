"""Parametrisations that run a test for every implementation of an operation; see conftest.py."""

from collections.abc import Iterable

import pytest

from scrd_fast import _native

# "native-avx2": the C++ implementation, compiled for AVX2.
IMPLS = ("reference", *(f"native-{isa}" for isa in _native.isas()))


def each_impl(
    *, reference: Iterable[object], native: Iterable[object], argument: str = "dtype"
) -> pytest.MarkDecorator:
    """Parametrise a test by `impl` and `argument`, which takes those values that the
    implementation knows: @each_impl(reference=[torch.float64], native=[torch.float32])."""
    values = {"reference": list(reference), "native": list(native)}
    cases = [pytest.param(impl, value, id=f"{impl}-{value}")
             for impl in IMPLS for value in values[impl.partition("-")[0]]]
    return pytest.mark.parametrize(("impl", argument), cases, indirect=["impl"])
