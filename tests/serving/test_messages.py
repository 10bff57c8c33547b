"""Bodies of requests and answers over HTTP, and what is wrong with bad ones."""

import json
import struct

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from scrd_fast.errors import InputError
from scrd_fast.serving.messages import (
    InferAnswer,
    InferRequest,
    WantedOutput,
    answer_body,
    parse_request,
)
from scrd_fast.serving.tensors import Tensor

IMAGE = {"name": "images", "shape": [1, 2, 2], "datatype": "UINT8", "data": [1, 2, 3, 4]}


def body_of(message, *parts: bytes):
    text = json.dumps(message).encode()
    return text + b"".join(parts), str(len(text)) if parts else None


def test_json():
    request = parse_request(*body_of({
        "id": "7", "inputs": [IMAGE], "parameters": {"maps": True},
        "outputs": [{"name": "score"}, {"name": "map", "parameters": {"binary_data": True}}]}))
    assert request.id == "7"
    assert request.parameters == {"maps": True}
    assert request.outputs == (WantedOutput("score"), WantedOutput("map", True))
    (image,) = request.inputs
    assert (image.name, image.datatype, image.shape) == ("images", "UINT8", (1, 2, 2))
    assert_array_equal(image.values, np.uint8([[[1, 2], [3, 4]]]))


def test_bytes_follow_in_the_order_of_the_inputs():
    file = struct.pack("<I", 3) + b"PNG"
    values = np.arange(6, dtype="<f4").reshape(1, 2, 3)
    request = parse_request(*body_of({"parameters": {"binary_data_output": True}, "inputs": [
        {"name": "files", "shape": [1], "datatype": "BYTES",
         "parameters": {"binary_data_size": len(file)}},
        IMAGE,
        {"name": "more", "shape": [1, 2, 3], "datatype": "FP32",
         "parameters": {"binary_data_size": 24}}]}, file, values.tobytes()))
    files, image, more = request.inputs
    assert files.values == [b"PNG"]
    assert image.name == "images"
    assert_array_equal(more.values, values)
    assert request.is_binary


@pytest.mark.parametrize(("message", "parts", "error"), [
    ([], (), "body: expected a JSON object, got list"),
    ({}, (), "inputs: expected one input at least, got none"),
    ({"inputs": {}}, (), "body: inputs: expected a list of at most 16, got dict"),
    ({"inputs": [IMAGE] * 17}, (), "body: inputs: expected a list of at most 16, got 17"),
    ({"inputs": [7]}, (), r"inputs\[0\]: expected an object, got int"),
    ({"inputs": [IMAGE | {"name": ""}]}, (), r"inputs\[0\]: name: expected a name, got none"),
    ({"inputs": [IMAGE | {"name": 1}]}, (), r"inputs\[0\]: name: expected a string"),
    ({"inputs": [{"name": "x"}]}, (), r"inputs\[0\]: datatype: expected one of .* got None"),
    ({"inputs": [IMAGE], "id": "i" * 257}, (), "body: id: expected a string of at most 256"),
    ({"inputs": [IMAGE], "parameters": 1}, (), "body: parameters: expected an object, got int"),
    ({"inputs": [IMAGE], "parameters": {"binary_data_output": 1}}, (),
     "body: binary_data_output: expected true or false, got 1"),
    ({"inputs": [IMAGE], "outputs": [{}]}, (), r"outputs\[0\]: name: expected a name, got none"),
    ({"inputs": [IMAGE]}, (b"abc",), "body: expected the bytes of its inputs, got 3 more"),
    ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 4}}]}, (b"abcd",),
     r"inputs\[0\]: expected either data or binary_data_size, got both"),
])
def test_bad_bodies(message, parts, error):
    with pytest.raises(InputError, match=f"^{error}"):
        parse_request(*body_of(message, *parts))


@pytest.mark.parametrize("size", [5, -1, True, 1.5, "4", 1 << 70])
def test_sizes_that_lie(size):
    image = {key: value for key, value in IMAGE.items() if key != "data"}
    message = {"inputs": [image | {"parameters": {"binary_data_size": size}}]}
    with pytest.raises(InputError, match="binary_data_size: expected a number of bytes up to those"
                                         " left, 4, got"):
        parse_request(*body_of(message, b"abcd"))


@pytest.mark.parametrize("length", ["-1", "1e3", "99999", "", "1" * 99, "٣"])
def test_lengths_that_lie(length):
    with pytest.raises(InputError, match="Inference-Header-Content-Length: expected a number of"):
        parse_request(body_of({"inputs": [IMAGE]})[0], length)


@pytest.mark.parametrize("text", [
    b"", b"{", b"nonsense", b'{"a": NaN}', b"\xff\xfe", b'{"a": Infinity}', b"[" * 100_000,
    b'{"a":' * 40 + b"1" + b"}" * 40, b'{"id": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json(text):
    with pytest.raises(InputError, match=r"^body: expected JSON"):
        parse_request(text, None)


def test_answers():
    scores = Tensor("score", "FP32", (2,), np.float32([0.5, np.nan]))
    maps = Tensor("map", "FP32", (2, 1, 1), np.float32([[[1]], [[2]]]))
    answer = InferAnswer("brain", "3", "7", (scores, maps))
    request = InferRequest("7", (), (WantedOutput("score"), WantedOutput("map", True)))
    body, length = answer_body(answer, request)
    assert length is not None
    assert json.loads(body[: int(length)]) == {
        "model_name": "brain", "model_version": "3", "id": "7", "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [2], "data": [0.5, None]},
            {"name": "map", "datatype": "FP32", "shape": [2, 1, 1],
             "parameters": {"binary_data_size": 8}}]}
    assert body[int(length):] == np.float32([1, 2]).tobytes()
    body, length = answer_body(answer, InferRequest("", ()))
    assert length is None
    assert json.loads(body)["outputs"][1]["data"] == [1.0, 2.0]
    body, length = answer_body(InferAnswer("brain", "3", "", (scores,)),
                               InferRequest("", (), is_binary=True))
    assert body[int(length or 0):] == np.float32([0.5, np.nan]).tobytes()
    assert "id" not in json.loads(body[: int(length or 0)])


@pytest.mark.parametrize(("own", "of_all", "expected"), [
    (None, False, False), (None, True, True), (True, False, True), (False, True, False)])
def test_which_outputs_come_as_bytes(own, of_all, expected):
    """What an output says is stronger than what the request says of all."""
    output = {"name": "score"} if own is None else {
        "name": "score", "parameters": {"binary_data": own}}
    request = parse_request(*body_of({
        "inputs": [IMAGE], "outputs": [output], "parameters": {"binary_data_output": of_all}}))
    assert request.comes_as_bytes("score") is expected
    answer = InferAnswer("m", "1", "", (Tensor("score", "FP32", (1,), np.float32([2])),))
    assert (answer_body(answer, request)[1] is not None) is expected


def test_a_list_nested_in_a_tensor_without_dimensions():
    with pytest.raises(InputError, match="data: expected a flat list, or one nested"):
        parse_request(*body_of({"inputs": [{**IMAGE, "shape": [], "data": [[1]]}]}))
