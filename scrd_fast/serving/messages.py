"""Requests and answers of the Open Inference Protocol as HTTP carries them.

A body is JSON, or JSON followed by the bytes of those tensors whose parameter binary_data_size says
how many are theirs, in their order; the header Inference-Header-Content-Length then tells where the
JSON ends. Answers are laid out alike.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scrd_fast.errors import InputError, ScrdError, expect
from scrd_fast.serving.tensors import Tensor, from_json, from_raw, to_json, to_raw

JSON_LENGTH = "Inference-Header-Content-Length"
# What is parsed takes 30 times its bytes, and holds up everything else while it is parsed.
MOST_JSON_BYTES = 1 << 21
MOST_IN_JSON = 1 << 18  # elements of a tensor
_MOST_TENSORS = 16
# Of parameters that Triton's extensions give a meaning.
_UNKNOWN = ("classification", "shared_memory", "sequence_")
_MOST_DEPTH = 32  # of nested lists; beyond that the parser itself would run out of stack


class TooLargeError(ScrdError):
    """A request of more bytes than the service takes."""


@dataclass(frozen=True)
class WantedOutput:
    """An output by its name, and whether its data shall be bytes; None: as the request says."""

    name: str
    is_binary: bool | None = None


@dataclass(frozen=True)
class InferRequest:
    """inputs: by the names of the model; outputs: what is wanted, all where it is empty.
    is_binary: whether outputs that do not say it themselves come as bytes."""

    id: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[WantedOutput, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    is_binary: bool = False

    def comes_as_bytes(self, output: str) -> bool:
        """Whether an output's data shall be bytes."""
        for each in self.outputs:
            if each.name == output and each.is_binary is not None:
                return each.is_binary
        return self.is_binary

    @property
    def timeout(self) -> float | None:
        """Seconds, by the parameter "timeout", which is in microseconds as Triton's clients send
        it; None where there is none, or 0."""
        found = self.parameters.get("timeout", 0)
        is_whole = isinstance(found, int) and not isinstance(found, bool)
        expect(is_whole and 0 <= found < 1 << 63, "parameters: timeout",
               "microseconds, an integer from 0", repr(found)[:32])
        return found / 1e6 or None


@dataclass(frozen=True)
class InferAnswer:
    """What a model gives for a request, its outputs in the order in which they were asked for.
    images: that have a score."""

    model_name: str
    model_version: str
    id: str
    outputs: tuple[Tensor, ...]
    images: int = 0


def parse_json(text: bytes | memoryview) -> Any:
    """What JSON says; raises InputError where it is none, or nested too deeply."""
    data = bytes(text)
    if len(data) > MOST_JSON_BYTES:
        raise TooLargeError(f"body: expected at most {MOST_JSON_BYTES} bytes of JSON, got"
                            f" {len(data)}; send tensors as binary data")
    depth = deepest = 0
    for place in data.translate(None, _NO_BRACKETS):  # of those in strings, too: a few more
        depth += 1 if place in b"[{" else -1
        deepest = max(deepest, depth)
    expect(deepest <= _MOST_DEPTH, "body", f"JSON nested at most {_MOST_DEPTH} deep", deepest)
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"body: expected JSON, got what is none: {error}") from None


_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def parse_request(body: bytes, json_length: str | None) -> InferRequest:
    """A request's body, and its header JSON_LENGTH where it has one."""
    view, end = memoryview(body), json_bytes(body, json_length)
    message = parse_json(view[:end])
    expect(isinstance(message, dict), "body", "a JSON object", type(message).__name__)
    inputs, rest = [], view[end:]
    for index, described in enumerate(_list_of(message, "inputs", "body")):
        where = f"inputs[{index}]"
        tensor, rest = _parse_input(where, described, rest)
        inputs.append(tensor)
    expect(len(rest) == 0, "body", "the bytes of its inputs", f"{len(rest)} more")
    expect(len(inputs) > 0, "inputs", "one input at least", "none")
    outputs = tuple(
        _parse_output(f"outputs[{index}]", described)
        for index, described in enumerate(_list_of(message, "outputs", "body")))
    parameters = _parameters_of(message, "body")
    return InferRequest(_text_of(message, "id", "body"), tuple(inputs), outputs, parameters,
                        _flag_of(parameters, "binary_data_output", "body"))


def json_bytes(body: bytes, json_length: str | None) -> int:
    """How many bytes of a body are JSON, by its header JSON_LENGTH where it has one."""
    if json_length is None:
        return len(body)
    is_length = json_length.isascii() and json_length.isdigit() and len(json_length) < 16
    expect(is_length and int(json_length) <= len(body), JSON_LENGTH,
           f"a number of bytes up to the body's, {len(body)}", repr(json_length[:32]))
    return int(json_length)


def _parse_input(where: str, described: Any, rest: memoryview) -> tuple[Tensor, memoryview]:
    """An input, and the bytes that are left for those after it."""
    expect(isinstance(described, dict), where, "an object", type(described).__name__)
    name = _text_of(described, "name", where)
    expect(bool(name), f"{where}: name", "a name", "none")
    parameters = _parameters_of(described, where)
    datatype, shape = described.get("datatype"), described.get("shape")
    size = parameters.get("binary_data_size")
    if size is None:
        is_base64 = parameters.get("content_type") == "base64"
        return from_json(where, datatype, shape, described.get("data"),
                         is_base64=is_base64, most=MOST_IN_JSON).renamed(name), rest
    expect("data" not in described, where, "either data or binary_data_size", "both")
    expect(isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= len(rest),
           f"{where}: binary_data_size", f"a number of bytes up to those left, {len(rest)}",
           repr(size)[:32])
    return from_raw(where, datatype, shape, rest[:size]).renamed(name), rest[size:]


def _parse_output(where: str, described: Any) -> WantedOutput:
    expect(isinstance(described, dict), where, "an object", type(described).__name__)
    name = _text_of(described, "name", where)
    expect(bool(name), f"{where}: name", "a name", "none")
    parameters = _parameters_of(described, where)
    is_binary = "binary_data" in parameters
    return WantedOutput(name, _flag_of(parameters, "binary_data", where) if is_binary else None)


def _list_of(message: Mapping[str, Any], name: str, where: str) -> Sequence[Any]:
    found = message.get(name, [])
    expect(isinstance(found, list) and len(found) <= _MOST_TENSORS, f"{where}: {name}",
           f"a list of at most {_MOST_TENSORS}",
           len(found) if isinstance(found, list) else type(found).__name__)
    return list(found)


def _text_of(message: Mapping[str, Any], name: str, where: str) -> str:
    found = message.get(name, "")
    expect(isinstance(found, str) and len(found) <= 256, f"{where}: {name}",
           "a string of at most 256 characters", type(found).__name__)
    return str(found)


def _parameters_of(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = message.get("parameters", {})
    expect(isinstance(found, dict), f"{where}: parameters", "an object", type(found).__name__)
    check_parameters(found, where)
    return dict(found)


def check_parameters(names: Iterable[str], where: str) -> None:
    """Raise InputError for a parameter that would change what is meant, and is not known here."""
    for name in names:
        expect(not name.startswith(_UNKNOWN), f"{where}: parameters",
               "none for classification, shared memory or sequences", repr(name)[:60])


def _flag_of(parameters: Mapping[str, Any], name: str, where: str) -> bool:
    found = parameters.get(name, False)
    expect(isinstance(found, bool), f"{where}: {name}", "true or false", repr(found)[:32])
    return bool(found)


def answer_body(answer: InferAnswer, request: InferRequest) -> tuple[bytes, str | None]:
    """The body of an answer, and its header JSON_LENGTH where bytes follow the JSON."""
    described, parts = [], []
    for tensor in answer.outputs:
        one: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype,
                               "shape": list(tensor.shape)}
        if request.comes_as_bytes(tensor.name):
            parts.append(to_raw(tensor))
            one["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            one["data"] = to_json(tensor)
        described.append(one)
    message = {"model_name": answer.model_name, "model_version": answer.model_version,
               **({"id": answer.id} if answer.id else {}), "outputs": described}
    text = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    return b"".join([text, *parts]), str(len(text)) if parts else None

