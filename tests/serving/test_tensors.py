"""Tensors of the Open Inference Protocol: the layouts of its specification, and bad ones."""

import base64
import json
import struct

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from scrd_fast.errors import InputError
from scrd_fast.serving.tensors import DTYPES, Tensor, from_json, from_raw, to_json, to_raw

MANY = 1000


def an_array(datatype: str, shape=(2, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, shape).astype(DTYPES[datatype])


@pytest.mark.parametrize("datatype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3), (1,), (0, 4), (2, 1, 2)])
def test_numbers_come_back_from_bytes_and_from_json(datatype, shape):
    values = an_array(datatype, shape)
    tensor = Tensor("x", datatype, shape, values)
    raw = to_raw(tensor)
    assert raw == values.tobytes()
    found = from_raw("x", datatype, shape, memoryview(raw))
    assert found.values.dtype == values.dtype
    assert_array_equal(found.values, values)
    for data in (to_json(tensor), values.tolist()):
        again = from_json("x", datatype, shape, json.loads(json.dumps(data)), most=MANY)
        assert again.values.dtype == values.dtype
        assert again.values.shape == shape
        assert_array_equal(again.values, values)


def test_bytes_are_looked_at_where_they_lie():
    raw = bytes(range(1, 26))
    found = from_raw("x", "FP32", (2, 3), memoryview(raw)[1:25])
    assert np.shares_memory(found.values, np.frombuffer(raw, np.uint8))
    assert_array_equal(found.values, np.frombuffer(raw[1:25], "<f4").reshape(2, 3))


def test_elements_of_bytes():
    values = [b"", b"\x89PNG", "grün".encode()]
    tensor = Tensor("x", "BYTES", (3,), values)
    raw = to_raw(tensor)
    assert raw == b"".join(struct.pack("<I", len(v)) + v for v in values)
    assert from_raw("x", "BYTES", (3,), memoryview(raw)) == tensor
    assert from_json("x", "BYTES", (3,), ["", "a", "grün"], most=MANY).values == [
        b"", b"a", "grün".encode()]
    coded = [base64.b64encode(v).decode() for v in values]
    assert from_json("x", "BYTES", (3, 1), coded, most=MANY, is_base64=True).values == values


def test_what_is_no_number_is_null():
    tensor = Tensor("x", "FP32", (3,), np.float32([1.5, np.nan, np.inf]))
    assert to_json(tensor) == [1.5, None, None]


@pytest.mark.parametrize(("datatype", "shape", "message"), [
    ("FP128", [1], "x: datatype: expected one of BOOL, .* got 'FP128'"),
    (["FP32"], [1], "x: datatype: expected"),
    ("FP32", 3, "x: shape: expected at most 8 integers from 0, got 3"),
    ("FP32", [-1, 3], "x: shape: expected"),
    ("FP32", [True], "x: shape: expected"),
    ("FP32", [1.0], "x: shape: expected"),
    ("FP32", [1] * 9, "x: shape: expected"),
    ("FP32", [1 << 41], "x: shape: expected"),
    ("FP32", "12", "x: shape: expected"),
    ("FP32", [2, 3], "x: expected 24 bytes for FP32 \\[2, 3\\], got 3"),
    ("FP32", [1 << 39] * 8, "x: shape: expected one of at most 1099511627776 elements, got"),
    ("FP32", [1 << 39, 1 << 39, 0], "x: shape: expected one of at most 1099511627776 elements"),
    ("FP32", [1 << 30], "x: expected 4294967296 bytes for FP32"),
    ("BYTES", [1 << 20], "x: shape: expected at most 4096 elements of BYTES, got 1048576"),
    ("BYTES", [4000], "x: expected 4000 elements of BYTES, each with its length"),
    ("BYTES", [1], "x: expected 1 elements of BYTES, each with its length in 4 bytes, got 3 bytes"),
])
def test_bad_shapes_and_sizes_of_bytes(datatype, shape, message):
    with pytest.raises(InputError, match=message):
        from_raw("x", datatype, shape, memoryview(b"abc"))


@pytest.mark.parametrize(("raw", "count", "message"), [
    (struct.pack("<I", 5) + b"abc", 1, "x: expected 5 bytes of element 0, got 3"),
    (struct.pack("<I", 0xFFFFFFFF), 1, "x: expected 4294967295 bytes of element 0, got 0"),
    (struct.pack("<I", 3) + b"abcd", 1, "x: expected 7 bytes for 1 elements of BYTES, got 8"),
    (struct.pack("<I", 3) + b"abc" + b"z", 2, "x: expected the length of element 1 at byte 7"),
    (b"abc", 0, "x: expected 0 bytes for 0 elements of BYTES, got 3"),
])
def test_lengths_that_lie(raw, count, message):
    with pytest.raises(InputError, match=message):
        from_raw("x", "BYTES", [count], memoryview(raw))


@pytest.mark.parametrize(("datatype", "shape", "data", "message"), [
    ("FP32", [2], 7, "x: data: expected a list, got 7"),
    ("FP32", [2], None, "x: data: expected a list, got None"),
    ("FP32", [2], [1], "x: data: expected 2 elements, as the shape says, got 1"),
    ("FP32", [2, 2], [[1, 2], [3]], "x: data: expected a flat list, or one nested"),
    ("FP32", [2, 2], [[1, 2], 3], "x: data: expected a flat list, or one nested"),
    ("FP32", [2, 3], [[1, 2], [3, 4, 5, 6]], "x: data: expected a flat list, or one nested"),
    ("FP32", [2, 3], [[1, 2, 3]], "x: data: expected a flat list, or one nested"),
    ("FP32", [4], [[1, 2], [3, 4]], "x: data: expected a flat list, or one nested"),
    ("FP32", [2], [[1], [2]], r"x: data\[0\]: expected a value of FP32, got \[1\]"),
    ("FP32", [1], ["1"], r"x: data\[0\]: expected a value of FP32, got '1'"),
    ("FP32", [1], [True], r"x: data\[0\]: expected a value of FP32, got True"),
    ("FP32", [1], [10**400], "x: data: expected values of FP32, got one that is too large"),
    ("UINT8", [2], [255, 256], r"x: data\[1\]: expected a value of UINT8, got 256"),
    ("UINT8", [1], [-1], "expected a value of UINT8"),
    ("UINT8", [1], [1.0], "expected a value of UINT8"),
    ("BOOL", [1], [1], "expected a value of BOOL"),
    ("BYTES", [1], [1], r"x: data\[0\]: expected a string, got 1"),
    ("BYTES", [1], ["\ud800"], r"x: data\[0\]: expected text, got half of a surrogate pair"),
    ("FP32", [1001], [0.0] * 1001, "x: expected at most 1000 elements in JSON; .* got 1001"),
])
def test_bad_json(datatype, shape, data, message):
    with pytest.raises(InputError, match=message):
        from_json("x", datatype, shape, data, most=MANY)


@pytest.mark.parametrize("data", ["a", "====", "ab c=", "grün"])
def test_bad_base64(data):
    with pytest.raises(InputError, match=r"x: data\[0\]: expected base64, got"):
        from_json("x", "BYTES", [1], [data], most=MANY, is_base64=True)


def test_messages_stay_short():
    with pytest.raises(InputError) as caught:
        from_json("x", "FP32", [1], ["y" * 10_000], most=MANY)
    assert len(str(caught.value)) < 150
