"""The protocol over HTTP, as a program sees it from outside."""

import contextlib
import json
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.report.generated import calibrate_engine
from tests.serving.conftest import ask, binary_body, run_service, tensor_of
from tests.support.models import pictures

ONE = pictures(1, 64)


@pytest.mark.slow
def test_health_and_metadata(service):
    assert service.ask("GET", "/v2/health/live").json == {"live": True}
    assert service.ask("GET", "/v2/health/ready").json == {"ready": True}
    for path in ("/v2/models/m", "/v2/models/m/versions/1"):
        assert service.ask("GET", f"{path}/ready").json == {"name": "m", "ready": True}
        found = service.ask("GET", path).json
        assert found["versions"] == ["1"]
        assert found["platform"] == "scrd_fast_openvino_fp32"
        assert [each["name"] for each in found["inputs"]] == ["images", "files"]
        assert [each["name"] for each in found["outputs"]] == [
            "score", "scale_weights", "map", "error"]
    assert service.ask("GET", "/v2").json["name"] == "scrd_fast"
    assert service.ask("POST", "/v2/repository/index", "{}").json == [
        {"name": "m", "version": "1", "state": "READY", "reason": ""}]


def test_json(service, engine):
    expected = engine.score(ONE)
    found = service.infer(tensor_of(ONE), id="a", outputs=[{"name": "score"}, {"name": "map"}])
    assert found.status == 200
    assert found.json["id"] == "a"
    assert_array_equal(found.outputs["score"].astype(np.float32), expected.scores)
    assert_array_equal(found.outputs["map"].astype(np.float32), expected.maps)


def test_bytes(service, engine):
    body, headers = binary_body(ONE, outputs=[
        {"name": "score", "parameters": {"binary_data": True}}])
    found = service.ask("POST", "/v2/models/m/infer", body, headers)
    length = int(found.headers["Inference-Header-Content-Length"])
    assert json.loads(found.body[:length])["outputs"] == [
        {"name": "score", "datatype": "FP32", "shape": [1],
         "parameters": {"binary_data_size": 4}}]
    assert found.body[length:] == engine.score(ONE).scores.tobytes()


def test_a_calibrated_model_decides(served_file, tmp_path):
    with calibrate_engine(tmp_path / "c.scrd", served_file) as engine, run_service(
            tmp_path / "log", tmp_path / "c.scrd") as running:
        images = pictures(4, 64, seed=11)
        expected = engine.score(images)
        found = running.infer(tensor_of(images), "c").outputs
        assert_array_equal(found["p_value"].astype(np.float32), expected.p_values)
        assert_array_equal(found["anomalous"], expected.anomalous)
        told = running.ask("GET", "/v2/models/c").json
        assert [each["name"] for each in told["outputs"]][:3] == ["score", "p_value", "anomalous"]
        assert told["parameters"] == {"threshold": engine.decisions.threshold,
                                      "map_scale": list(engine.decisions.maps.scale)}


def test_a_connection_serves_many_requests(service):
    with contextlib.closing(service.connect()) as connection:
        for _ in range(3):
            assert ask(connection, "GET", "/v2").status == 200
            own = connection.sock
            assert ask(connection, "POST", "/v2/models/m/infer",
                       *binary_body(ONE)).status == 200
            # What is wrong with a request's content does not end the connection either.
            assert ask(connection, "POST", "/v2/models/m/infer", "{").status == 400
            assert connection.sock is own


@pytest.mark.parametrize(("method", "path", "body", "headers", "status", "error"), [
    ("GET", "/v2/models/x", None, {}, 404, "model: expected m, got 'x'"),
    ("GET", "/v2/models/m/versions/2", None, {}, 404, "model: expected m, got 'm' version '2'"),
    ("POST", "/v2/models/x/infer", "{}", {}, 404, "model: expected m, got 'x'"),
    ("GET", "/v2/modelz", None, {}, 404, "GET /v2/modelz: Not Found"),
    ("GET", "/v2/models/m/infer", None, {}, 405, "GET /v2/models/m/infer: Method Not Allowed"),
    ("POST", "/v2/models/m/infer", "{", {}, 400, "body: expected JSON"),
    ("POST", "/v2/models/m/infer", "{}", {}, 400, "inputs: expected one input at least"),
    ("POST", "/v2/models/m/infer", "{}", {"Request-Timeout": "soon"}, 400,
     "Request-Timeout: expected seconds above 0, got 'soon'"),
    ("POST", "/v2/models/m/infer", "{}", {"Content-Encoding": "gzip"}, 400, "Content-Encoding"),
    ("POST", "/v2/models/m/infer", "{}", {"Inference-Header-Content-Length": "3"}, 400,
     "Inference-Header-Content-Length: expected a number of bytes up to the body's, 2"),
    ("POST", "/v2/models/m/infer", "{}", {"Inference-Header-Content-Length": "\u00b2"}, 400,
     "Inference-Header-Content-Length"),
    ("POST", "/v2/models/m/infer", "{}", {"Inference-Header-Content-Length": "9" * 5000}, 400,
     "Inference-Header-Content-Length"),
    ("POST", "/v2/models/m/infer", "[" + "1," * 2**20 + "1]", {}, 413, "bytes of JSON"),
    ("POST", "/v2/models/m/infer", "{}", {"Origin": "http://evil.example"}, 403, "Origin"),
    ("POST", "/v2/repository/index", "[]", {}, 400, "body: expected a JSON object, got list"),
    ("POST", "/v2/models/m/infer", json.dumps({
        "inputs": [tensor_of(ONE)], "parameters": {"timeout": 10**400}}), {}, 400, "timeout"),
    ("POST", "/v2/models/m/infer", json.dumps({"inputs": [{
        **tensor_of(ONE), "shape": [2**39, 2**39, 0], "data": []}]}), {}, 400, "shape"),
    ("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor_of(ONE)], "outputs": [{
        "name": "score", "parameters": {"classification": 1}}]}), {}, 400, "classification"),
    ("POST", "/v2/repository/models/m/load", "{}", {}, 403, "--allow-load"),
    ("POST", "/v2/repository/models/m/unload", "{}", {}, 403, "--allow-load"),
])
def test_errors(service, method, path, body, headers, status, error):
    found = service.ask(method, path, body, headers)
    assert found.status == status
    assert error in found.json["error"]


@pytest.mark.slow
def test_large_maps_come_as_bytes(service):
    """256 maps as JSON would take seconds to write, for everybody."""
    images = pictures(100, 64)
    body, headers = binary_body(images, outputs=[{"name": "map"}])
    found = service.ask("POST", "/v2/models/m/infer", body, headers)
    assert found.status == 400
    assert "maps of at most 262144 values in JSON" in found.json["error"]
    for binary in ({"parameters": {"binary_data_output": True}, "outputs": [{"name": "map"}]},
                   {"outputs": [{"name": "map", "parameters": {"binary_data": True}}]}):
        found = service.ask("POST", "/v2/models/m/infer", *binary_body(images, **binary))
        assert found.status == 200
        assert len(found.body) > 100 * 64 * 64 * 4


def test_deadlines(service):
    # Before it 64 images: a millisecond is over long before they are scored.
    busy = threading.Thread(target=service.ask, args=(
        "POST", "/v2/models/m/infer", *binary_body(pictures(64, 64))))
    busy.start()
    time.sleep(0.05)
    found = service.ask("POST", "/v2/models/m/infer", binary_body(ONE)[0],
                        {**binary_body(ONE)[1], "Request-Timeout": "0.001"})
    # Once it is known how long an image takes, it is refused at once.
    assert found.status in (504, 429)
    assert "within 0.001 s" in found.json["error"]
    body, headers = binary_body(ONE, parameters={"timeout": 1000})  # microseconds
    assert service.ask("POST", "/v2/models/m/infer", body, headers).status in (504, 429)
    busy.join()


@pytest.mark.slow
def test_health_answers_while_a_batch_computes(service):
    done = threading.Event()

    def compute():
        service.ask("POST", "/v2/models/m/infer", *binary_body(pictures(200, 64)))
        done.set()

    busy = threading.Thread(target=compute)
    busy.start()
    answered = 0
    while not done.is_set():
        assert service.ask("GET", "/v2/health/live").status == 200
        answered += 1
    busy.join()
    assert answered >= 5


def test_metrics(service):
    def read():
        found = service.ask("GET", "/metrics")
        assert found.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = [line.split(" ") for line in found.body.decode().splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    service.infer(tensor_of(ONE))
    before = read()
    service.ask("POST", "/v2/models/m/infer", *binary_body(pictures(5, 64)))
    service.infer({**tensor_of(ONE), "name": "x"})
    after = read()

    def grown(name):
        return after[name] - before.get(name, 0)

    of = 'model="m",version="1"'
    assert grown(f"scrd_inferences_total{{{of}}}") == 5
    assert grown('scrd_requests_total{model="m",status="OK",version="1"}') == 1
    assert grown('scrd_requests_total{model="m",status="INVALID_ARGUMENT",version="1"}') == 1
    assert grown(f"scrd_executions_total{{{of}}}") == 2  # a batch of 4, and one of 1
    assert grown(f"scrd_request_seconds_count{{{of}}}") == 1
    assert after[f"scrd_pending_images{{{of}}}"] == 0


@pytest.mark.slow
def test_large_bodies_are_refused_unread(served_file, tmp_path):
    with run_service(tmp_path / "log", served_file, "--most-megabytes", 1) as running:
        with socket.create_connection(running.http, timeout=30) as connection:
            connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
                               b"Content-Length: 900000000000\r\n\r\n")
            answer = connection.makefile("rb").read()  # until it hangs up
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"body: expected at most 1048576 bytes, got 900000000000" in answer
        with socket.create_connection(running.http, timeout=30) as connection:
            connection.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"
                               b"Transfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(OSError):  # it hangs up while this still sends
                for _ in range(40):
                    connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert running.infer(tensor_of(ONE)).status == 200


@pytest.mark.slow
def test_token(served_file, tmp_path):
    (tmp_path / "token").write_text("a-token-of-some-length\n")
    with run_service(tmp_path / "log", served_file, "--token-file", tmp_path / "token") as running:
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/openapi.json"):
            assert running.ask("GET", path).status == 200
        for path in ("/v2", "/v2/models/m", "/metrics"):
            for header in ({}, {"Authorization": "Bearer a-token-of-another"},
                           {"Authorization": "a-token-of-some-length"}):
                found = running.ask("GET", path, headers=header)
                assert found.status == 401
                assert found.headers["WWW-Authenticate"] == "Bearer"
        assert running.infer(tensor_of(ONE)).status == 401
        running.headers = {"Authorization": "bearer a-token-of-some-length"}
        assert running.infer(tensor_of(ONE)).status == 200
    assert "token" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_tls(served_file, tmp_path, certificate):
    import http.client

    import grpc

    from scrd_fast.serving.grpc_messages import message

    chain, key = certificate
    with run_service(tmp_path / "log", served_file, "--tls-cert", chain, "--tls-key",
                     key) as running:
        assert "ready: https://" in running.log.read_text()
        context = ssl.create_default_context(cafile=chain)
        with contextlib.closing(http.client.HTTPSConnection(*running.http, context=context)) as c:
            assert ask(c, "GET", "/v2/health/live").status == 200
        credentials = grpc.ssl_channel_credentials(chain.read_bytes())
        with grpc.secure_channel(running.grpc, credentials) as channel:
            live = channel.unary_unary(
                "/inference.GRPCInferenceService/ServerLive",
                request_serializer=message("ServerLiveRequest").SerializeToString,
                response_deserializer=message("ServerLiveResponse").FromString)
            assert live(message("ServerLiveRequest")(), timeout=30).live


@pytest.mark.slow
def test_loading_and_unloading(served_file, tmp_path):
    import shutil

    shutil.copy(served_file, tmp_path / "m.scrd")
    with run_service(tmp_path / "log", tmp_path / "m.scrd", f"m:2={served_file}",
                     f"n={served_file}", "--allow-load") as running:
        assert running.ask("GET", "/v2/models/m").json["versions"] == ["1", "2"]
        assert running.infer(tensor_of(ONE)).json["model_version"] == "2"
        assert running.ask("POST", "/v2/repository/models/m/unload", "{}").status == 200
        assert running.infer(tensor_of(ONE)).status == 404
        assert running.infer(tensor_of(ONE), "n").status == 200
        (tmp_path / "m.scrd").rename(tmp_path / "elsewhere")
        found = running.ask("POST", "/v2/repository/models/m/load", "{}")
        assert found.status == 500
        assert "m.scrd" in found.json["error"]
        states = {(each["name"], each["version"]): (each["state"], bool(each["reason"]))
                  for each in running.ask("POST", "/v2/repository/index").json}
        assert states["m", "1"] == ("UNAVAILABLE", True)
        assert running.ask("GET", "/v2/health/ready").status == 503
        (tmp_path / "elsewhere").rename(tmp_path / "m.scrd")
        assert running.ask("POST", "/v2/repository/models/m/load", "{}").status == 200
        assert running.ask("GET", "/v2/health/ready").status == 200
        assert running.infer(tensor_of(ONE)).status == 200
        assert running.ask("POST", "/v2/repository/models/x/load", "{}").status == 404


def test_the_page_asks_nobody_else(service):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"),
                       ("/page.css", "text/css")):
        found = service.ask("GET", path)
        assert found.status == 200
        assert found.headers["Content-Type"].startswith(kind)
        assert b"http://" not in found.body
        assert b"https://" not in found.body
        assert "default-src 'self'" in found.headers["Content-Security-Policy"]
