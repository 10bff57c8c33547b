"""A service among clients that stall, vanish and lie, and killed in the middle of its work."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
import time

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.serving.conftest import binary_body, run_service, tensor_of
from tests.support.models import pictures

ONE = pictures(1, 64)
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n"


def resident_bytes(process):
    with open(f"/proc/{process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def connect(running):
    return socket.create_connection(running.http, timeout=30)


def read_all(connection):
    """What a connection says until it ends."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            found += part
    return found


@pytest.fixture(scope="module")
def impatient(served_file, tmp_path_factory):
    """A service that waits a second for a request to come."""
    with run_service(tmp_path_factory.mktemp("impatient") / "log", f"m={served_file}",
                     "--receive-seconds", 1) as running:
        yield running


@pytest.mark.slow
def test_slow_clients_are_cut_off_and_others_answered(impatient):
    """One says nothing, one sends a byte of its head now and then, one of its body."""
    with contextlib.ExitStack() as stack:
        silent, heady, bodily = (stack.enter_context(connect(impatient)) for _ in range(3))
        bodily.sendall(HEAD + b"Content-Length: 100\r\n\r\n")
        began = time.monotonic()
        sending = [(heady, iter(HEAD)), (bodily, iter(b"{" * 100))]
        while sending and time.monotonic() - began < 20:
            for connection, left in list(sending):
                try:
                    connection.sendall(bytes([next(left)]))
                except OSError:
                    sending.remove((connection, left))
            assert impatient.infer(tensor_of(ONE)).status == 200
            time.sleep(0.2)
        assert not sending
        assert read_all(silent) == b""
        assert read_all(heady) == b""
    with connect(impatient) as connection:
        connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"body: expected all of it within 1 s, got 1 bytes" in answer


@pytest.mark.slow
def test_a_head_without_end_is_refused(service):
    """By its size, long before its time is over."""
    began = time.monotonic()
    with connect(service) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"GET / HTTP/1.1\r\n" if _ == 0 else b"a: " + b"b" * 9000
                                   + b"\r\n")
        answer = read_all(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")  # empty where it was reset
    assert time.monotonic() - began < 15  # of 30
    assert service.ask("GET", "/v2/health/live").status == 200


def test_clients_that_hang_up(service):
    """Their work is dropped, and memory and other clients' answers stay as they were."""
    body, headers = binary_body(pictures(40, 64))
    head = HEAD + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    for _ in range(30):
        with connect(service) as connection:
            connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(0.01)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    found = service.infer(tensor_of(ONE))
    assert found.status == 200
    text = service.ask("GET", "/metrics").body.decode()
    of = 'model="m",version="1"'
    assert 'scrd_requests_total{model="m",status="CANCELLED",version="1"}' in text
    executions = float(text.split(f"scrd_executions_total{{{of}}} ")[1].split()[0])
    assert executions < 30 * 10 / 2  # of 4 each


@pytest.mark.slow
def test_killed_under_load_it_starts_again(served_file, tmp_path, engine):
    expected = engine.score(ONE).scores
    statuses = []

    def load(running):
        with contextlib.suppress(OSError, ValueError):
            while True:
                statuses.append(running.infer(tensor_of(ONE)).status)

    with run_service(tmp_path / "log", f"m={served_file}") as running:
        clients = [threading.Thread(target=load, args=(running,)) for _ in range(3)]
        for client in clients:
            client.start()
        while len(statuses) < 10:
            time.sleep(0.01)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        for client in clients:
            client.join(60)
            assert not client.is_alive()
    port = running.http[1]
    with run_service(tmp_path / "log", f"m={served_file}", "--port", port) as again:
        assert again.http[1] == port
        found = again.infer(tensor_of(ONE))
        assert_array_equal(found.outputs["score"].astype(np.float32), expected)


def test_at_its_end_it_answers_what_it_took(served_file, tmp_path):
    with run_service(tmp_path / "log", f"m={served_file}") as running:
        found = []
        clients = [threading.Thread(target=lambda: found.append(running.ask(
            "POST", "/v2/models/m/infer", *binary_body(pictures(40, 64))))) for _ in range(4)]
        for client in clients:
            client.start()
        # All were taken, or answered already.
        while True:
            text = running.ask("GET", "/metrics").body.decode()
            pending = float(re.search(r"scrd_pending_images{.*} (.*)", text)[1])
            if pending + 40 * len(found) >= 160:
                break
        assert running.stop() == 0
        for client in clients:
            client.join()
        assert [each.status for each in found] == [200] * 4
        with pytest.raises(ConnectionError):
            running.ask("GET", "/v2/health/live")


@pytest.mark.slow
def test_a_full_disk_for_logs(served_file, tmp_path):
    """Its lines are lost, and nothing else."""
    port = free_port()
    with open("/dev/full", "wb") as full, run_service_silently(
            full, f"m={served_file}", "--port", port) as process:
        wait_for(port)
        connection = ("127.0.0.1", port)
        with socket.create_connection(connection, timeout=30) as client:
            client.sendall(b"GARBAGE\r\n\r\n")
            assert read_all(client).startswith(b"HTTP/1.1 400 ")
        with socket.create_connection(connection, timeout=30) as client:
            text = json.dumps({"inputs": [tensor_of(ONE)]}).encode()
            client.sendall(HEAD + f"Connection: close\r\nContent-Length: {len(text)}\r\n\r\n"
                           .encode() + text)
            assert read_all(client).startswith(b"HTTP/1.1 200 ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def run_service_silently(stderr, *arguments):
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "scrd_fast", "serve", *map(str, arguments), "--grpc-port", "-1"],
        stderr=stderr, stdout=stderr)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(port):
    end = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except ConnectionError:
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.slow
def test_memory_is_bounded_while_bodies_come(served_file, tmp_path):
    """Of many requests that say they are large, and send half, four are held at most."""
    with run_service(tmp_path / "log", f"m={served_file}", "--most-megabytes", 16) as running:
        assert running.infer(tensor_of(ONE)).status == 200
        before = resident_bytes(running.process)
        with contextlib.ExitStack() as stack:
            refused = 0
            for _ in range(24):
                connection = stack.enter_context(connect(running))
                try:
                    connection.sendall(HEAD + b"Content-Length: 16000000\r\n\r\n"
                                       + b"x" * 8_000_000)
                except ConnectionError:  # refused before all of it was sent
                    refused += 1
            time.sleep(0.5)
            assert refused >= 1
            assert resident_bytes(running.process) - before < 160e6
            assert running.ask("GET", "/v2/health/live").status == 200
        time.sleep(0.5)
        assert running.infer(tensor_of(ONE)).status == 200
