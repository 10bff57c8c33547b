"""Dataclasses from JSON, every value of the type that its field declares, down to the leaves."""

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from scrd_fast.errors import InputError, expect, fail

T = TypeVar("T")

_NAMES = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false",
          types.NoneType: "null"}

_annotations = cache(get_type_hints)


def from_mapping(
    cls: type[T], values: Mapping[str, Any], where: str, *, partial: bool = False
) -> T:
    """Build dataclass `cls` from `values`, refusing unknown and (unless `partial`) missing names.

    Lists become tuples, as JSON has no tuples. Raises InputError naming `where`.
    """
    expect(isinstance(values, Mapping), where, "a JSON object", type(values).__name__)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    unknown, missing = sorted(set(values) - known), sorted(known - set(values))
    expect(not unknown, where, f"only the fields {sorted(known)}", f"unknown {unknown}")
    expect(partial or not missing, where, f"all the fields {sorted(known)}", f"none for {missing}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def is_whole(value: object, least: int) -> bool:
    """Whether this is an integer (no bool) from `least` that fits into 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def is_number(value: object) -> bool:
    """Whether this is a finite integer or float (no bool) that float32 can hold."""
    # A bound instead of isfinite, which overflows on the long integers that JSON allows.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


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
