"""Tensors of the Open Inference Protocol: from JSON and from bytes to arrays, and back.

The specification (version 2 of KServe's "open inference protocol") names the datatypes and how each
is laid out; raw bytes are little-endian and row-major, an element of BYTES is its length as uint32
and then itself. Whatever comes from outside is checked before memory is taken for it.
"""

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import expect, fail

# The protocol's names. BF16 is missing: numpy has none, and no image comes in it.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}
BYTES = "BYTES"
MOST_BYTES_ELEMENTS = 4096  # each is an object of Python's, however few bytes it has
_MOST_VALUES = 1 << 40
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """A named tensor: an array of its shape, or of BYTES a list of as many elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[bytes]

    def renamed(self, name: str) -> "Tensor":
        """The same under another name than the one that errors tell."""
        return replace(self, name=name)


def check_shape(name: str, datatype: Any, shape: Any) -> int:
    """How many elements there are; raises InputError unless name, type and shape are ones."""
    expect(datatype == BYTES or (isinstance(datatype, str) and datatype in DTYPES),
           f"{name}: datatype", f"one of {', '.join([*DTYPES, BYTES])}", _told(datatype))
    expect(isinstance(shape, Sequence) and not isinstance(shape, str) and len(shape) <= 8
           and all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 40
                   for n in shape), f"{name}: shape", "at most 8 integers from 0", _told(shape))
    # Of those that are not 0: an array of no elements may still be too large to have a shape.
    expect(math.prod(n for n in shape if n) <= _MOST_VALUES, f"{name}: shape",
           f"one of at most {_MOST_VALUES} elements", _told(shape))
    count = math.prod(shape)
    expect(datatype != BYTES or count <= MOST_BYTES_ELEMENTS, f"{name}: shape",
           f"at most {MOST_BYTES_ELEMENTS} elements of BYTES", count)
    return count


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> Tensor:
    """A tensor whose elements are bytes. Numbers are looked at where they lie, without a copy."""
    count = check_shape(name, datatype, shape)
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), _split(name, count, raw))
    dtype = DTYPES[datatype]
    expect(len(raw) == count * dtype.itemsize, name,
           f"{count * dtype.itemsize} bytes for {datatype} {_told(list(shape))}", len(raw))
    return Tensor(name, datatype, tuple(shape), np.frombuffer(raw, dtype).reshape(shape))


def _split(name: str, count: int, raw: memoryview) -> list[bytes]:
    """`count` elements of BYTES, which must be all there is."""
    # Each has its length at least: a shape that lies takes no memory.
    expect(count * _LENGTH.size <= len(raw), name,
           f"{count} elements of BYTES, each with its length in 4 bytes", f"{len(raw)} bytes")
    found, place = [], 0
    for index in range(count):
        if place + _LENGTH.size > len(raw):
            fail(name, f"the length of element {index} at byte {place}", f"{len(raw)} bytes")
        (length,) = _LENGTH.unpack_from(raw, place)
        place += _LENGTH.size
        if length > len(raw) - place:
            fail(name, f"{length} bytes of element {index}", f"{len(raw) - place}")
        found.append(bytes(raw[place : place + length]))
        place += length
    expect(place == len(raw), name, f"{place} bytes for {count} elements of BYTES", len(raw))
    return found


def from_json(name: str, datatype: str, shape: Sequence[int], data: Any, *,
              is_base64: bool = False, most: int) -> Tensor:
    """A tensor whose elements are a list, flat or nested as the shape says.

    most: elements. Numbers must be such that the datatype holds them; BYTES are strings, as UTF-8
    or in base64.
    """
    count = check_shape(name, datatype, shape)
    expect(count <= most, name, f"at most {most} elements in JSON; send more as binary data", count)
    flat = _flatten(name, data, tuple(shape))
    expect(len(flat) == count, f"{name}: data", f"{count} elements, as the shape says", len(flat))
    if datatype == BYTES:
        return Tensor(name, datatype, tuple(shape), [
            _bytes_of(f"{name}: data[{i}]", value, is_base64) for i, value in enumerate(flat)])
    dtype = DTYPES[datatype]
    kinds: tuple[type, ...] = {"b": (bool,), "f": (int, float)}.get(dtype.kind, (int,))
    limits = np.iinfo(dtype) if dtype.kind in "iu" else None
    for index, value in enumerate(flat):
        right = isinstance(value, kinds) and (dtype.kind == "b" or not isinstance(value, bool))
        if right and limits is not None:
            right = limits.min <= value <= limits.max
        if not right:
            fail(f"{name}: data[{index}]", f"a value of {datatype}", _told(value))
    try:
        with np.errstate(over="ignore"):  # beyond FP16 and FP32 a number is infinite, as in C
            values = np.array(flat, dtype).reshape(shape)
    except OverflowError:  # an integer beyond any float
        fail(f"{name}: data", f"values of {datatype}", "one that is too large")
    return Tensor(name, datatype, tuple(shape), values)


def _flatten(name: str, data: Any, shape: tuple[int, ...]) -> list[Any]:
    """All elements of a list that is flat, or nested as deep as the shape."""
    expect(isinstance(data, list), f"{name}: data", "a list", _told(data))
    if not (data and isinstance(data[0], list)):
        return list(data)
    nested = f"a flat list, or one nested as the shape {_told(list(shape))}"
    expect(len(shape) > 0 and len(data) == shape[0], f"{name}: data", nested,
           f"{len(data)} elements")
    for size in shape[1:]:
        for part in data:
            expect(isinstance(part, list) and len(part) == size, f"{name}: data", nested,
                   f"one with {_told(part)}")
        data = [value for part in data for value in part]
    return list(data)


def _bytes_of(name: str, value: Any, is_base64: bool) -> bytes:
    expect(isinstance(value, str), name, "a string", _told(value))
    if not is_base64:
        # JSON may escape half a surrogate pair, which is no text.
        try:
            return bytes(value, "utf-8")
        except UnicodeEncodeError:
            fail(name, "text", "half of a surrogate pair")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        fail(name, "base64", "other characters or length")


def to_raw(tensor: Tensor) -> bytes:
    """The elements as the protocol's binary data."""
    if isinstance(tensor.values, list):
        return b"".join(_LENGTH.pack(len(value)) + value for value in tensor.values)
    return tensor.values.astype(DTYPES[tensor.datatype], copy=False).tobytes()


def to_json(tensor: Tensor) -> list[Any]:
    """The elements as a flat list; what is not a number is null, which JSON has."""
    if isinstance(tensor.values, list):
        return [value.decode("utf-8", "replace") for value in tensor.values]
    values: list[Any] = tensor.values.reshape(-1).tolist()
    if tensor.values.dtype.kind == "f":
        values = [value if math.isfinite(value) else None for value in values]
    return values


def _told(value: Any) -> str:
    """A value of a client's, short enough for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
