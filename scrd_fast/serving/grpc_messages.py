"""The protocol's messages over gRPC: names and field numbers, and classes made of them.

They are KServe's, version 2 (grpc_predict_v2.proto), with the two fields of parameters and the
repository extension that Triton Inference Server added. The classes are made here, at run time, so
that any release of protobuf serves; tests/serving compares them with those of Triton's own client.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from scrd_fast.serving.messages import TooLargeError

PACKAGE, SERVICE = "inference", "GRPCInferenceService"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL, "string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES,
    "int32": _Field.TYPE_INT32, "int64": _Field.TYPE_INT64, "uint32": _Field.TYPE_UINT32,
    "uint64": _Field.TYPE_UINT64, "float": _Field.TYPE_FLOAT, "double": _Field.TYPE_DOUBLE,
}
_TENSOR = "name string, datatype string, shape *int64"

# Message -> its fields in the order of their numbers, which count from 1: "name type", a * before
# what is repeated, a map{} from strings, an | before members of a message's one choice.
_MESSAGES: dict[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "ready bool",
    "ModelReadyRequest": "name string, version string",
    "ModelReadyResponse": "ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "name string, version string, extensions *string",
    "ModelMetadataRequest": "name string, version string",
    "ModelMetadataResponse": "name string, versions *string, platform string,"
                             " inputs *ModelMetadataResponse.TensorMetadata,"
                             " outputs *ModelMetadataResponse.TensorMetadata",
    "ModelMetadataResponse.TensorMetadata": _TENSOR,
    "InferParameter": "bool_param |bool, int64_param |int64, string_param |string,"
                      " double_param |double, uint64_param |uint64",
    "InferTensorContents": "bool_contents *bool, int_contents *int32, int64_contents *int64,"
                           " uint_contents *uint32, uint64_contents *uint64, fp32_contents *float,"
                           " fp64_contents *double, bytes_contents *bytes",
    "ModelInferRequest": "model_name string, model_version string, id string,"
                         " parameters map{InferParameter},"
                         " inputs *ModelInferRequest.InferInputTensor,"
                         " outputs *ModelInferRequest.InferRequestedOutputTensor,"
                         " raw_input_contents *bytes",
    "ModelInferRequest.InferInputTensor": f"{_TENSOR}, parameters map{{InferParameter}},"
                                          " contents InferTensorContents",
    "ModelInferRequest.InferRequestedOutputTensor": "name string, parameters map{InferParameter}",
    "ModelInferResponse": "model_name string, model_version string, id string,"
                          " parameters map{InferParameter},"
                          " outputs *ModelInferResponse.InferOutputTensor,"
                          " raw_output_contents *bytes",
    "ModelInferResponse.InferOutputTensor": f"{_TENSOR}, parameters map{{InferParameter}},"
                                            " contents InferTensorContents",
    "ModelRepositoryParameter": "bool_param |bool, int64_param |int64, string_param |string,"
                                " bytes_param |bytes",
    "RepositoryIndexRequest": "repository_name string, ready bool",
    "RepositoryIndexResponse": "models *RepositoryIndexResponse.ModelIndex",
    "RepositoryIndexResponse.ModelIndex": "name string, version string, state string,"
                                          " reason string",
    "RepositoryModelLoadRequest": "repository_name string, model_name string,"
                                  " parameters map{ModelRepositoryParameter}",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "repository_name string, model_name string,"
                                    " parameters map{ModelRepositoryParameter}",
    "RepositoryModelUnloadResponse": "",
}
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata",
           "ModelInfer", "RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload")


# A message's fields beside raw bytes, of which each element is an object of Python's or an entry of
# a list: so many bytes of them are parsed while everything else waits.
_MOST_PARSED_BYTES = 1 << 21
_MOST_FIELDS = 1024  # of a request, counted at its top
_RAW_INPUT_CONTENTS = 7  # of ModelInferRequest; other requests have no such field


def check_wire(content: bytes) -> None:
    """Raise TooLargeError for a request that would take long to parse: its bytes must be
    raw_input_contents but for a few. What is no message is left to the parser."""
    place = raw = fields = 0
    try:
        while place < len(content):
            fields += 1
            key, place = _read_varint(content, place)
            if key & 7 != 2 or fields > _MOST_FIELDS:
                break
            length, place = _read_varint(content, place)
            raw += length if key >> 3 == _RAW_INPUT_CONTENTS else 0
            place += length
    except IndexError:
        pass  # it is cut: the parser says so
    if len(content) - raw > _MOST_PARSED_BYTES:
        raise TooLargeError(f"request: expected at most {_MOST_PARSED_BYTES} bytes beside"
                            f" raw_input_contents, got {len(content) - raw}")


def _read_varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of protobuf's in at most ten bytes, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place + shift // 7]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place + shift // 7 + 1
    raise IndexError


def _add_fields(message: Any, full_name: str, fields: str) -> None:
    for number, described in enumerate(filter(None, fields.split(", ")), 1):
        name, kind = described.split(" ")
        field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
        if kind.startswith("map{"):
            entry = "".join(part.title() for part in name.split("_")) + "Entry"
            nested = message.nested_type.add(name=entry)
            nested.options.map_entry = True
            nested.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL,
                             type=_Field.TYPE_STRING)
            nested.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL,
                             type=_Field.TYPE_MESSAGE, type_name=f".{PACKAGE}.{kind[4:-1]}")
            kind = f"*{full_name}.{entry}"
        if kind.startswith("*"):
            field.label = _Field.LABEL_REPEATED
        if kind.startswith("|"):
            if not message.oneof_decl:
                message.oneof_decl.add(name="parameter_choice")
            field.oneof_index = 0
        bare = kind.lstrip("*|")
        if bare in _SCALARS:
            field.type = _SCALARS[bare]
        else:
            field.type, field.type_name = _Field.TYPE_MESSAGE, f".{PACKAGE}.{bare}"


@cache
def file_descriptor() -> Any:
    """All messages and the service, as protobuf describes them to itself."""
    file = descriptor_pb2.FileDescriptorProto(
        name="scrd_fast/open_inference.proto", package=PACKAGE, syntax="proto3")
    made: dict[str, Any] = {}
    for full_name, fields in _MESSAGES.items():
        outer, _, inner = full_name.rpartition(".")
        made[full_name] = made[outer].nested_type.add(name=inner) if outer else (
            file.message_type.add(name=inner))
        _add_fields(made[full_name], full_name, fields)
    service = file.service.add(name=SERVICE)
    for method in METHODS:
        service.method.add(name=method, input_type=f".{PACKAGE}.{method}Request",
                           output_type=f".{PACKAGE}.{method}Response")
    return file


@cache
def _pool() -> Any:
    # Of its own: the default one may hold another's file with messages of these names.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file_descriptor())
    return pool


@cache
def message(name: str) -> Any:
    """The class of a message, such as "ModelInferRequest"."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))
