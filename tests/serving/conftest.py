"""A service in a process of its own, and what asks it."""

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent.parent
START_SECONDS, END_SECONDS = 120, 60


@dataclass
class Answer:
    """What HTTP answered."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def outputs(self) -> dict[str, Any]:
        """Of an answer that is JSON alone: arrays by name."""
        return {each["name"]: np.reshape(np.array(each["data"]), each["shape"])
                for each in self.json["outputs"]}


@dataclass
class Service:
    """A running service."""

    process: subprocess.Popen
    http: tuple[str, int]
    grpc: str | None
    log: Path
    headers: dict[str, str] = field(default_factory=dict)

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.http, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, headers: Any = None) -> Answer:
        with contextlib.closing(self.connect()) as connection:
            return ask(connection, method, path, body, {**self.headers, **(headers or {})})

    def infer(self, inputs: Any, model: str = "m", **more: Any) -> Answer:
        inputs = inputs if isinstance(inputs, list) else [inputs]
        return self.ask("POST", f"/v2/models/{model}/infer",
                        json.dumps({"inputs": inputs, **more}))

    def stop(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(END_SECONDS)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: Any = None,
        headers: Any = None) -> Answer:
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return Answer(answer.status, answer.headers, answer.read())


def tensor_of(images: np.ndarray, name: str = "images") -> dict[str, Any]:
    kind = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}[images.dtype.name]
    return {"name": name, "datatype": kind, "shape": list(images.shape),
            "data": images.ravel().tolist()}


def binary_body(images: np.ndarray, **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose pixels are bytes behind the JSON, and its header."""
    described = tensor_of(images[:0])
    described |= {"shape": list(images.shape),
                  "parameters": {"binary_data_size": images.nbytes}}
    del described["data"]
    text = json.dumps({"inputs": [described], **more}).encode()
    return text + images.tobytes(), {"Inference-Header-Content-Length": str(len(text))}


@contextlib.contextmanager
def run_verb(log: Path, ready: str, *arguments: Any
             ) -> Iterator[tuple[subprocess.Popen, re.Match[str]]]:
    """scrd-fast with these arguments, until the block ends; where only what scores is installed.
    Gives what matches `ready` in what it says on standard error."""
    command = [sys.executable, "-m", "tests.support.without_training", *map(str, arguments)]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stderr=file)
    try:
        end = time.monotonic() + START_SECONDS
        while (found := re.search(ready, log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        yield process, found
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_SECONDS) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def run_service(log: Path, *arguments: Any) -> Iterator[Service]:
    """scrd-fast serve, on free ports unless they are told, until the block ends."""
    ports = [each for name in ("--port", "--grpc-port") if name not in arguments
             for each in (name, 0)]
    with run_verb(log, r"ready: https?://(\S+):(\d+)(?:, gRPC (\S+))?\n", "serve", *arguments,
                  *ports) as (process, found):
        yield Service(process, (found[1], int(found[2])), found[3], log)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for this machine that it signed itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout",
         folder / "key.pem", "-out", folder / "cert.pem"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("openssl is not installed, or makes no certificate")
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture(scope="session")
def served_file(small_files):
    """An engine file for batches of 1 and of 4."""
    return small_files("openvino")


@pytest.fixture(scope="module")
def service(served_file, tmp_path_factory):
    """A service with one model, m."""
    with run_service(tmp_path_factory.mktemp("service") / "log", f"m={served_file}") as running:
        yield running


@pytest.fixture(scope="module")
def engine(served_file):
    """The same model through the Python API."""
    import scrd_fast

    with scrd_fast.load_engine(served_file) as loaded:
        yield loaded
