"""Debian's Orthanc: a DICOM archive that nobody here wrote."""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
ORTHANC_MISSING = "Orthanc, the receiver, is not installed"
Ports = tuple[int, int]  # of HTTP and of DICOM


def find_ports() -> Ports:
    """Two that are free."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def ask(port: int, method: str, place: str, body: Any = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, place, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        found = answer.read()
        assert answer.status == 200, (place, answer.status, found[:500])
        return found
    finally:
        connection.close()


def get(port: int, place: str) -> bytes:
    return ask(port, "GET", place)


def get_json(port: int, place: str) -> Any:
    return json.loads(get(port, place))


def is_up(name: str, ports: Ports) -> bool:
    """Whether it listens on both; other servers have other names."""
    try:
        socket.create_connection(("127.0.0.1", ports[1]), timeout=1).close()
        return get_json(ports[0], "/system")["Name"] == name
    except OSError:
        return False


@contextlib.contextmanager
def run_orthanc(folder: Path, ports: Ports | None = None) -> Iterator[Ports]:
    """A server of its own, until the block ends; with the folder of an earlier one its archive."""
    name, ports = str(folder), ports or find_ports()
    (folder / "orthanc.json").write_text(json.dumps({
        "Name": name, "StorageDirectory": str(folder / "storage"), "HttpPort": ports[0],
        "DicomPort": ports[1], "DicomAet": "ORTHANC", "Plugins": [], "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False}))
    # It ends with its standard input, so that it does not outlive a test run that is killed.
    with (folder / "log").open("w") as log, subprocess.Popen(
            ["sh", "-c", '"$@" & read end; kill $!; wait', "sh", ORTHANC, folder / "orthanc.json"],
            stdin=subprocess.PIPE, stdout=log, stderr=log) as process:
        late = time.monotonic() + 20
        while not is_up(name, ports) and time.monotonic() < late:
            time.sleep(0.05)
        assert is_up(name, ports), (folder / "log").read_text()
        yield ports
        process.stdin.close()
        assert process.wait(20) in (0, 143)
    assert not is_up(name, ports)
