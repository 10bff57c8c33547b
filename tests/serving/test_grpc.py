"""The protocol over gRPC: its messages are the official ones, its statuses gRPC's."""

import threading
import time

import grpc
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from scrd_fast.serving.grpc_messages import METHODS, file_descriptor, message
from tests.serving.conftest import run_service
from tests.support.models import pictures

ONE = pictures(1, 64)


def call(channel, method, timeout=60, metadata=(), **fields):
    made = channel.unary_unary(
        f"/inference.GRPCInferenceService/{method}",
        request_serializer=message(f"{method}Request").SerializeToString,
        response_deserializer=message(f"{method}Response").FromString)
    return made(message(f"{method}Request")(**fields), timeout=timeout, metadata=metadata)


@pytest.fixture
def channel(service):
    with grpc.insecure_channel(service.grpc) as opened:
        yield opened


def infer_fields(images, **more):
    return {"model_name": "m", "inputs": [
        {"name": "images", "datatype": "UINT8", "shape": images.shape}],
        "raw_input_contents": [images.tobytes()], **more}


def floats(response, name):
    index = [each.name for each in response.outputs].index(name)
    return np.frombuffer(response.raw_output_contents[index], "<f4").reshape(
        response.outputs[index].shape)


def test_messages_are_the_official_ones():
    """Names, numbers, types, labels and choices of all fields, and the methods, are those that
    Triton's client was generated from."""
    service_pb2 = pytest.importorskip("tritonclient.grpc.service_pb2")
    from google.protobuf import descriptor_pb2

    theirs, ours = descriptor_pb2.FileDescriptorProto(), file_descriptor()
    service_pb2.DESCRIPTOR.CopyToProto(theirs)
    official = {each.name: each for each in theirs.message_type}

    def content(each):
        for field in each.field:
            field.ClearField("json_name")
        return ([field.SerializeToString() for field in each.field],
                [choice.name for choice in each.oneof_decl],
                {nested.name: content(nested) for nested in each.nested_type},
                each.options.map_entry)

    assert len(ours.message_type) == 21
    for each in ours.message_type:
        assert content(type(each).FromString(each.SerializeToString())) == content(
            official[each.name]), each.name
    methods = {each.name: (each.input_type, each.output_type)
               for each in theirs.service[0].method}
    assert theirs.package == ours.package
    assert theirs.service[0].name == ours.service[0].name
    assert [(each.name, (each.input_type, each.output_type))
            for each in ours.service[0].method] == [(name, methods[name]) for name in METHODS]


@pytest.mark.slow
def test_health_and_metadata(channel):
    assert call(channel, "ServerLive").live
    assert call(channel, "ServerReady").ready
    assert call(channel, "ModelReady", name="m").ready
    assert not call(channel, "ModelReady", name="x").ready
    assert call(channel, "ServerMetadata").name == "scrd_fast"
    found = call(channel, "ModelMetadata", name="m", version="1")
    assert [each.name for each in found.outputs] == ["score", "scale_weights", "map", "error"]
    assert list(found.outputs[2].shape) == [-1, 64, 64]
    assert [each.state for each in call(channel, "RepositoryIndex").models] == ["READY"]


def test_raw_contents(channel, engine):
    expected = engine.score(ONE)
    found = call(channel, "ModelInfer", id="q", **infer_fields(
        ONE, outputs=[{"name": "map"}, {"name": "score"}]))
    assert (found.id, found.model_name, found.model_version) == ("q", "m", "1")
    assert_array_equal(floats(found, "score"), expected.scores)
    assert_array_equal(floats(found, "map"), expected.maps)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_typed_contents(channel, engine, dtype):
    images = ONE if dtype == np.uint8 else (
        ONE.astype(np.uint16) * 257 if dtype == np.uint16 else ONE / np.float32(255))
    kind, field = {np.uint8: ("UINT8", "uint_contents"), np.uint16: ("UINT16", "uint_contents"),
                   np.float32: ("FP32", "fp32_contents")}[dtype]
    found = call(channel, "ModelInfer", model_name="m", inputs=[{
        "name": "images", "datatype": kind, "shape": images.shape,
        "contents": {field: images.ravel().tolist()}}])
    assert_array_equal(floats(found, "score"), engine.score(images).scores)


def test_files(channel, engine, tmp_path):
    import cv2

    file = cv2.imencode(".png", ONE[0])[1].tobytes()
    (tmp_path / "a.png").write_bytes(file)
    found = call(channel, "ModelInfer", model_name="m", inputs=[{
        "name": "files", "datatype": "BYTES", "shape": [1], "contents": {
            "bytes_contents": [file]}}])
    assert_array_equal(floats(found, "score"), engine.score([tmp_path / "a.png"]).scores)


@pytest.mark.parametrize(("fields", "code", "error"), [
    ({"model_name": "x"}, "NOT_FOUND", "model: expected m, got 'x'"),
    ({"model_name": "m"}, "INVALID_ARGUMENT", "inputs: expected one"),
    (infer_fields(ONE, model_version="9"), "NOT_FOUND", "version '9'"),
    (infer_fields(ONE, raw_input_contents=[b"a", b"b"]), "INVALID_ARGUMENT",
     "raw_input_contents: expected one for each of 1 inputs, got 2"),
    (infer_fields(ONE, raw_input_contents=[b"a"]), "INVALID_ARGUMENT",
     r"inputs[0]: expected 12288 bytes for UINT8 [1, 64, 64, 3], got 1"),
    (infer_fields(ONE, outputs=[{"name": "y"}]), "INVALID_ARGUMENT", "outputs: expected some of"),
    ({"model_name": "m", "inputs": [{"name": "images", "datatype": "FP16", "shape": [1, 2, 2]}]},
     "INVALID_ARGUMENT", "expected FP16 as raw_input_contents, got contents"),
    ({"model_name": "m", "inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 2, 2],
                                     "contents": {"uint_contents": [1, 2, 3, 256]}}]},
     "INVALID_ARGUMENT", "inputs[0]: data[3]: expected a value of UINT8, got 256"),
    ({"model_name": "m", "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 2]}]},
     "INVALID_ARGUMENT", "inputs[0]: shape"),
])
def test_errors(channel, fields, code, error):
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, "ModelInfer", **fields)
    assert raised.value.code().name == code
    assert error in raised.value.details()


def test_loading_needs_permission(channel):
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, method, model_name="m")
        assert raised.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_deadlines_and_cancelled_calls_drop_their_work(channel, service):
    """What is cancelled while another's batch computes never reaches the network."""
    def executions():
        text = service.ask("GET", "/metrics").body.decode()
        return float(text.split('scrd_executions_total{model="m",version="1"} ')[1].split()[0])

    before = executions()
    busy = threading.Thread(target=call, args=(channel, "ModelInfer"),
                            kwargs=infer_fields(pictures(60, 64)))
    busy.start()
    time.sleep(0.05)
    made = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=message("ModelInferRequest").SerializeToString,
        response_deserializer=message("ModelInferResponse").FromString)
    waiting = [made.future(message("ModelInferRequest")(**infer_fields(pictures(30, 64))))
               for _ in range(4)]
    time.sleep(0.05)
    for each in waiting:
        each.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, "ModelInfer", timeout=0.001, **infer_fields(ONE))
    # Whoever is first: the client's clock, or the service, which sees that it is too late.
    assert raised.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED,
                                   grpc.StatusCode.RESOURCE_EXHAUSTED)
    busy.join()
    call(channel, "ModelInfer", **infer_fields(ONE))
    assert executions() - before < 15 + 4 * 8 / 2  # in batches of 4


@pytest.mark.slow
def test_overload_is_told_at_once(served_file, tmp_path):
    with run_service(tmp_path / "log", f"m={served_file}", "--most-waiting", 100) as running, (
            grpc.insecure_channel(running.grpc)) as channel:
        busy = threading.Thread(target=call, args=(channel, "ModelInfer"),
                                kwargs=infer_fields(pictures(100, 64)))
        busy.start()
        while 'scrd_pending_images{model="m",version="1"} 100.0' not in running.ask(
                "GET", "/metrics").body.decode():
            time.sleep(0.001)
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, "ModelInfer", **infer_fields(ONE))
        busy.join()
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "retry-after" in dict(raised.value.trailing_metadata())
        with pytest.raises(grpc.RpcError, match="at most 100 images in a request, got 101"):
            call(channel, "ModelInfer", **infer_fields(pictures(101, 64)))


def test_what_takes_long_to_parse_is_refused(channel):
    """Millions of tiny elements; and a message that would be read only with a token."""
    for fields in ({"bytes_contents": [b""] * 2_000_000}, {"uint_contents": [1] * 3_000_000}):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, "ModelInfer", model_name="m", inputs=[{
                "name": "files", "datatype": "BYTES", "shape": [1], "contents": fields}])
        assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "beside raw_input_contents" in raised.value.details()
    with pytest.raises(grpc.RpcError, match="at most 4096 elements of BYTES"):
        call(channel, "ModelInfer", model_name="m", inputs=[{
            "name": "files", "datatype": "BYTES", "shape": [2_000_000]}],
            raw_input_contents=[bytes(8_000_000)])


def test_deadline_in_a_parameter(channel):
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, "ModelInfer", **infer_fields(
            pictures(60, 64), parameters={"timeout": {"int64_param": 1}}))
    assert raised.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED,
                                   grpc.StatusCode.RESOURCE_EXHAUSTED)


@pytest.mark.slow
def test_token(served_file, tmp_path):
    (tmp_path / "token").write_text("a-token-of-some-length")
    with run_service(tmp_path / "log", f"m={served_file}", "--token-file",
                     tmp_path / "token") as running, (
            grpc.insecure_channel(running.grpc)) as channel:
        assert call(channel, "ServerLive").live
        for metadata in ((), (("authorization", "Bearer another"),)):
            with pytest.raises(grpc.RpcError) as raised:
                call(channel, "ServerMetadata", metadata=metadata)
            assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert call(channel, "ServerMetadata", metadata=(
            ("authorization", "Bearer a-token-of-some-length"),)).name
