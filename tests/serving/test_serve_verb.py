"""scrd-fast serve as its user meets it: what is wrong is said in one line."""

import os
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cli.commands import run_here
from tests.serving.conftest import binary_body, run_service
from tests.support.models import pictures


@pytest.fixture
def taken():
    """A port that another listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(("arguments", "error"), [
    (["{folder}/gone.scrd"], "gone.scrd"),
    (["m={file}", "m={file}"], "models: expected names and versions that differ; write"
                               " NAME:VERSION=PATH, got m version 1 twice"),
    (["a/b={file}"], "expected a name of letters"),
    (["m:x={file}"], "expected a version that is a number from 1, got 'x'"),
    (["{file}", "--tls-cert", "{file}"], "--tls-cert and --tls-key: expected both or none"),
    (["{file}", "--tls-cert", "{file}", "--tls-key", "{file}"],
     "--tls-cert and --tls-key: expected a certificate and its key in PEM"),
    (["{file}", "--token-file", "{folder}/gone"], "--token-file: expected a file of ASCII"),
    (["{file}", "--token-file", "{folder}/short"], "token: expected 16 printable ASCII"),
    (["{file}", "--port", "{taken}"], "--port: expected a port that can be listened on, got"
                                      " 127.0.0.1:"),
    (["{file}", "--port", "0", "--grpc-port", "{taken}"],
     "--grpc-port: expected a port that can be listened on"),
    (["{file}", "--host", "no.such.host.invalid"], "expected a port that can be listened on"),
    (["{file}", "--gather-ms", "-1"], "--gather-ms"),
])
def test_errors(served_file, tmp_path, taken, arguments, error):
    (tmp_path / "short").write_text("short")
    filled = [each.format(file=served_file, folder=tmp_path, taken=taken) for each in arguments]
    done = run_here("serve", *filled)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 + done.stderr.count("warning: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_what_scores_gives_way_to_what_answers(served_file, tmp_path):
    """The engine's threads take most of the time, at a lower priority than the event loop's."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with run_service(tmp_path / "log", f"m={served_file}") as running:
        body, headers = binary_body(pictures(8, 64))
        before = ticks_of(running.process.pid)
        for _ in range(20):
            assert running.ask("POST", "/v2/models/m/infer", body, headers).status == 200
        spent = ticks_of(running.process.pid) - before
        main = os.getpriority(os.PRIO_PROCESS, running.process.pid)
    assert main == own
    assert spent[min(own + 10, 19)] > spent.total() / 2


def ticks_of(process: int) -> Counter[int]:
    """User time of a process's threads by their niceness, in ticks of the clock."""
    ticks: Counter[int] = Counter()
    for task in Path(f"/proc/{process}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[int(fields[16])] += int(fields[11])
    return ticks


def test_a_missing_extra_is_named(served_file, monkeypatch):
    for name in list(sys.modules):
        if name.startswith("scrd_fast.serving"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run_here("serve", served_file)
    assert done.returncode == 2
    assert "serve: expected uvicorn, got none; what serves comes with:" in done.stderr
    assert "pip install 'scrd-fast[serve]'" in done.stderr


@pytest.mark.slow
def test_who_lets_others_in_is_warned(served_file, tmp_path):
    with run_service(tmp_path / "log", served_file, "--host", "0.0.0.0", "--grpc-port",
                     "-1") as running:
        text = running.log.read_text()
        assert "others reach this service; it has no --token-file and --tls-cert" in text
        assert "gRPC" not in text
        running.http = ("127.0.0.1", running.http[1])
        assert running.ask("GET", "/v2/health/live").status == 200
    with run_service(tmp_path / "log", served_file) as running:
        assert "warning" not in running.log.read_text()
