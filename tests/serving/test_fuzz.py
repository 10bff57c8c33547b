"""Malformed requests by the thousand: each is answered cleanly or its connection closed, nothing
ends, and memory stays as it was."""

import contextlib
import json
import random
import re
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from scrd_fast.serving.grpc_messages import message
from tests.serving.conftest import binary_body, run_service, tensor_of
from tests.serving.test_faults import resident_bytes
from tests.support.models import pictures

ONE = pictures(1, 16)
CLIENTS = 20
MOST_GROWTH = 150e6  # bytes; a leak of 10 KB per request would be 200 MB
NUMBERS = (0, -1, 1, 2**31, 2**40, 2**63, -2**63, 2**200, 1e308, 0.5)
VALUES = (*NUMBERS, None, True, "", "UINT8", "BYTES", "FP16", [], {}, [[]], "\ud800", "\x00",
          [1, [2]])


def mutate_value(rng, value):
    """A message in which one thing, anywhere, is another."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = rng.choice(list(value))
        found = {**value, name: mutate_value(rng, value[name])}
        if rng.random() < 0.1:
            del found[name]
        return found
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        return [*value[:index], mutate_value(rng, value[index]), *value[index + 1 :]]
    return rng.choice(VALUES)


def mutate_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        place = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[place : place + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            del data[place : place + rng.choice((1, 4, 100))]
        elif kind == 2:
            data[place:place] = rng.choice((b"[" * 50, b"{", b'"', b"\x00", b"\xff\xfe", b"1e9999",
                                            b"-", b"null"))
        else:
            data = data[:place]
        if not data:
            break
    return bytes(data)


SEEDS = [
    {"inputs": [tensor_of(ONE)]},
    {"id": "x", "inputs": [tensor_of(ONE[..., 0])], "parameters": {"binary_data_output": True},
     "outputs": [{"name": "score", "parameters": {"binary_data": True}}, {"name": "map"}]},
    {"inputs": [{"name": "files", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="],
                 "parameters": {"content_type": "base64"}}]},
]


def make_body(rng):
    """A body and its headers."""
    kind = rng.randrange(5)
    if kind == 0:
        return json.dumps(mutate_value(rng, rng.choice(SEEDS))).encode(), {}
    if kind == 1:
        return mutate_bytes(rng, json.dumps(rng.choice(SEEDS)).encode()), {}
    if kind == 2:
        return rng.randbytes(rng.randrange(300)), {}
    body, headers = binary_body(ONE)
    length = int(headers["Inference-Header-Content-Length"])
    if kind == 3:  # lengths that lie
        lie = rng.choice((*NUMBERS, "", "a", "0x10", f"{length}\t", length - 1, length + 1))
        return body, {"Inference-Header-Content-Length": str(lie)}
    described = json.loads(body[:length])
    text = json.dumps(mutate_value(rng, described)).encode()
    return text + mutate_bytes(rng, body[length:]), {
        "Inference-Header-Content-Length": str(len(text))}


def make_request(rng):
    """The bytes of a request."""
    body, headers = make_body(rng)
    path = rng.choice(("/v2/models/m/infer",) * 8 + ("/v2/models/%00/infer", "/v2/../etc/passwd",
                                                     "/v2/models/m/versions/1e9/infer"))
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}",
             *(f"{name}: {value}" for name, value in headers.items())]
    if rng.random() < 0.03:
        lines.append(rng.choice(("Transfer-Encoding: chunked", "Request-Timeout: nan",
                                 "Expect: 100-continue", "Content-Encoding: br",
                                 "Content-Length: 7", "Upgrade: h2c")))
    request = "\r\n".join([*lines, "", ""]).encode("utf-8", "replace") + body
    return mutate_bytes(rng, request) if rng.random() < 0.05 else request


def answers_of(connection, seconds):
    """What comes until a connection has been silent for so long, or ends."""
    connection.settimeout(seconds)
    found = b""
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            found += part
            if is_whole(found):
                break
    return found


def is_whole(answer):
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def send_http(running, rng):
    with socket.create_connection(running.http, timeout=30) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(make_request(rng))
        answer = answers_of(connection, 20)
    if not answer:
        return None
    status = int(answer.split(b" ", 2)[1])
    assert status == 200 or status == 100 or 400 <= status < 500, answer
    return status


def send_grpc(call, rng):
    made = message("ModelInferRequest")(
        model_name="m", inputs=[{"name": rng.choice(("images", "files")), "datatype": rng.choice(
            ("UINT8", "BYTES", "FP32", "X")), "shape": rng.choice(
            ([1, 16, 16, 3], [1], [2**62, 2**62], [-1], [0], []))}],
        raw_input_contents=[ONE.tobytes()] * rng.choice((0, 1, 1, 1, 2)))
    data = made.SerializeToString()
    try:
        call(mutate_bytes(rng, data) if rng.random() < 0.7 else data, timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def send_frames(running, rng):
    """HTTP/2 that is none."""
    host, _, port = running.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if rng.random() < 0.8 else b"")
            for _ in range(rng.randrange(1, 6)):
                payload = rng.randbytes(rng.randrange(60))
                size = rng.choice((len(payload), 2**24 - 1, 0))
                connection.sendall(size.to_bytes(3, "big") + rng.randbytes(1) + rng.randbytes(5)
                                   + payload)
        answers_of(connection, 0.05)


def send_some(running, call, seed, count):
    """What became of so many requests, by status."""
    rng = random.Random(seed)
    statuses = Counter()
    for i in range(count):
        if i % 5 == 4:
            status = send_grpc(call, rng)
        elif i % 100 == 50:
            status = send_frames(running, rng)
        else:
            status = send_http(running, rng)
        statuses[status] += 1
    return statuses


def send_all(running, count):
    """From several clients at a time: many requests end only when the service's patience does."""
    running.infer(tensor_of(ONE))
    before = resident_bytes(running.process)
    with grpc.insecure_channel(running.grpc) as channel, ThreadPoolExecutor(CLIENTS) as pool:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        found = pool.map(lambda seed: send_some(running, call, seed, count // CLIENTS),
                         range(CLIENTS))
        statuses = sum(found, Counter())
        expected = running.infer(tensor_of(ONE))
    assert statuses.total() == count
    assert running.process.poll() is None
    assert expected.status == 200
    assert resident_bytes(running.process) - before < MOST_GROWTH
    return statuses


def check(served_file, folder, count):
    with run_service(folder / "log", f"m={served_file}", "--receive-seconds",
                     0.3) as running:
        statuses = send_all(running, count)
        print(statuses)
        assert statuses[400] > count / 3
        assert statuses["INVALID_ARGUMENT"] > count / 20
        assert set(statuses) <= {None, 100, 200, 400, 404, 405, 408, 413, "OK",
                                 "INVALID_ARGUMENT", "NOT_FOUND"}
    assert "Traceback" not in (folder / "log").read_text()


@pytest.mark.slow
def test_malformed_requests(served_file, tmp_path):
    check(served_file, tmp_path, 1000)


@pytest.mark.slow
def test_twenty_thousand_malformed_requests(served_file, tmp_path):
    began = time.monotonic()
    check(served_file, tmp_path, 20_000)
    print(f"{time.monotonic() - began:.0f} s")
