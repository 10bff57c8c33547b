"""Dataclasses from JSON, every value of the type that its field declares, down to the leaves."""

import types
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from scrd_fast.errors import InputError, expect, fail
from scrd_fast.spec import from_mapping, is_number

T = TypeVar("T")

_NAMES = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false",
          types.NoneType: "null"}

_annotations = cache(get_type_hints)


def read_record(cls: type[T], values: Any, where: str) -> T:
    """Build dataclass `cls` from JSON, with all of its fields and no others.

    A field is an int, float, str, bool, None, a tuple or a mapping by text of such, another
    dataclass, or a union of these. Raises InputError that names the place, such as
    "manifest.fidelity.limits.flipped", what was expected there and what was found.
    """
    expect(isinstance(values, Mapping), where, "a JSON object", type(values).__name__)
    known = _annotations(cls)  # type: ignore[arg-type]  # a class is hashable
    return from_mapping(cls, {
        name: _read(known[name], value, f"{where}.{name}") if name in known else value
        for name, value in values.items()}, where)


def _read(kind: Any, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        return read_record(kind, value, where)  # type: ignore[arg-type]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_one_of(arguments, value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is not None and issubclass(origin, Mapping):
        expect(isinstance(value, Mapping), where, "a JSON object", type(value).__name__)
        return {name: _read(arguments[1], each, f"{where}.{name}") for name, each in value.items()}
    # A bool is an int to Python, and an int is a number to JSON.
    good = is_number(value) if kind is float else type(value) is kind
    expect(good, where, _NAMES[kind], repr(value))
    return float(value) if kind is float else value


def _read_one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """The first kind that fits; the error is that of the last, which is the most specific."""
    if types.NoneType in kinds and value is None:
        return None
    *others, last = (kind for kind in kinds if kind is not types.NoneType)
    for kind in others:
        try:
            return _read(kind, value, where)
        except InputError:
            continue
    return _read(last, value, where)


def _read_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    expect(isinstance(value, list | tuple), where, "a list", type(value).__name__)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        fail(where, f"{len(kinds)} values", len(value))
    return tuple(_read(kind, each, f"{where}[{i}]")
                 for i, (kind, each) in enumerate(zip(kinds, value, strict=True)))
