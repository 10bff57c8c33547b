"""Runs a test for every implementation of an operation; see conftest.py."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from scrd_fast import _native

# "native-avx2": the C++ implementation, compiled for AVX2. "triton" runs on the GPU where there is
# one, else in Triton's interpreter.
IMPLS = ("reference", *(f"native-{isa}" for isa in _native.isas()),
         pytest.param("triton", marks=pytest.mark.gpu))
PARAM = type(pytest.param(None))


#: Marks of a test that takes long where Triton's interpreter runs it, 60 ms a program, but not on
#: a GPU, where make gpu-check runs it.
INTERPRETED = () if torch.cuda.is_available() else (pytest.mark.slow,)


def slow(value: object) -> object:
    """A value whose tests take long in Triton's interpreter."""
    return pytest.param(value, marks=INTERPRETED)


def slow_interpreted(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that takes long in Triton's interpreter."""
    for mark in INTERPRETED:
        test = mark(test)
    return test


def each_impl(
    *, reference: Iterable[object], native: Iterable[object], triton: Iterable[object],
    argument: str = "dtype",
) -> pytest.MarkDecorator:
    """Parametrise a test by `impl` and `argument`, which takes those values that the
    implementation knows: @each_impl(reference=[torch.float64], native=[torch.float32], ...).
    A value may be a `slow` one."""
    values = {"reference": list(reference), "native": list(native), "triton": list(triton)}
    cases = []
    for impl in IMPLS:
        name, marks = (impl, ()) if isinstance(impl, str) else (impl.values[0], impl.marks)
        for given in values[name.partition("-")[0]]:
            value, more = (
                (given.values[0], given.marks) if isinstance(given, PARAM) else (given, ()))
            cases.append(pytest.param(name, value, id=f"{name}-{value}", marks=(*marks, *more)))
    return pytest.mark.parametrize(("impl", argument), cases, indirect=["impl"])


def _moved(value: Any, device: str) -> Any:
    """The tensors in `value` on another device; a leaf there where it is one here."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(v, device) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(_moved(v, device) for v in value)
    return value


def where_it_runs(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The operation, with the tensors for impl="triton" moved to the GPU and back where there is
    one. A gradient flows back through the moves."""

    @functools.wraps(operation)
    def run(*args: Any, **options: Any) -> Any:
        if options.get("impl") != "triton" or not torch.cuda.is_available():
            return operation(*args, **options)
        options = {name: _moved(value, "cuda") for name, value in options.items()}
        return _moved(operation(*_moved(args, "cuda"), **options), "cpu")

    return run
