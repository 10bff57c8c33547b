"""A DICOM node in a process of its own, and real programs that send to it and receive from it."""

import contextlib
import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import END_SECONDS, run_verb
from tests.support.orthanc import ORTHANC, ORTHANC_MISSING, Ports, get_json, run_orthanc

TOOLS = ("storescu", "echoscu")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def skip_without_tools() -> None:
    """Skip a module where what it needs is not installed."""
    from tests.outputs.dicom_series import has_tool

    pytest.importorskip("pynetdicom", reason="pynetdicom speaks DICOM")
    for tool in TOOLS:
        if not has_tool(tool):
            pytest.skip(f"{tool} (dcmtk) is not installed", allow_module_level=True)
    if ORTHANC is None:
        pytest.skip(ORTHANC_MISSING, allow_module_level=True)


def write_study(folder: Path, number: int, count: int, **elements: Any) -> list[str]:
    """An MR series in a study of its own; the UIDs of its instances."""
    from tests.outputs.dicom_series import write_series

    study = f"1.2.3.{number}"
    write_series(folder, "axial", count, like="MR_small.dcm", StudyInstanceUID=study,
                 SeriesInstanceUID=f"{study}.1", **elements)
    return [f"{study}.1.{i + 1}" for i in range(count)]


@dataclass
class Node:
    """A running node."""

    process: subprocess.Popen
    port: int
    spool: Path
    log: Path

    def send(self, *places: Path, aec: str = "SCRD-FAST", aet: str = "SENDER",
             more: tuple[str, ...] = (), check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            ["storescu", "-pdu", "131072", "-R", "+sd", "-aec", aec, "-aet", aet, *more,
             "127.0.0.1", str(self.port), *map(str, places)],
            capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, done.stdout + done.stderr + self.log.read_text()
        return done

    def status(self) -> Any:
        return read_status(self.spool)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(END_SECONDS)


def read_status(spool: Path) -> Any:
    from scrd_fast.serving.dicom import status

    return status.read_status(spool)


def read_events(spool: Path, *whats: str) -> list[dict[str, Any]]:
    from scrd_fast.serving.dicom.ledger import Ledger

    ledger = Ledger(spool, create=False)
    found = [event for event in ledger.events() if not whats or event["what"] in whats]
    ledger.close()
    return found


def wait_for(condition: Any, seconds: float = 60, *, log: Path | None = None) -> None:
    """Until it holds; an assertion that fails in it does not hold yet."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):
            if condition():
                return
        assert time.monotonic() < end, log.read_text() if log else "it did not come about"
        time.sleep(0.02)


@contextlib.contextmanager
def run_node(engine: Path, spool: Path, to: int, *arguments: Any, complete_after: float = 0.5
             ) -> Iterator[Node]:
    """scrd-fast dicom-listen on a free port, until the block ends. to: Orthanc's port."""
    log = spool.with_suffix(f".{time.monotonic_ns()}.log")
    with run_verb(log, r"ready: \S+:(\d+)\n", "dicom-listen", "--engine", engine, "--spool", spool,
                  "--to", f"ORTHANC@127.0.0.1:{to}", "--port", 0, "--complete-after",
                  complete_after, *arguments) as (process, found):
        yield Node(process, int(found[1]), spool, log)


@dataclass(frozen=True)
class Archive:
    """An Orthanc that is running."""

    ports: Ports

    @property
    def port(self) -> int:
        """Where it takes DICOM."""
        return self.ports[1]

    def count(self) -> int:
        return int(get_json(self.ports[0], "/statistics")["CountInstances"])

    def instances(self) -> list[dict[str, Any]]:
        """The tags of all."""
        return [get_json(self.ports[0], f"/instances/{each}/simplified-tags")
                for each in get_json(self.ports[0], "/instances")]

    def captured(self) -> Counter:
        """How often the image of which source is there."""
        return Counter(each["SourceImageSequence"][0]["ReferencedSOPInstanceUID"]
                       for each in self.instances() if each["SOPClassUID"] == SECONDARY_CAPTURE)


@contextlib.contextmanager
def run_archive(folder: Path, ports: Ports | None = None) -> Iterator[Archive]:
    folder.mkdir(exist_ok=True)
    with run_orthanc(folder, ports) as found:
        yield Archive(found)


@pytest.fixture
def archive(tmp_path):
    with run_archive(tmp_path / "orthanc") as running:
        yield running


def check_all_arrived_once(node: Node, archive: Archive, sent: list[str]) -> None:
    """Each instance was scored in one job, its image is in the archive once, and all else that was
    recorded, too; nothing is left in the spool."""
    wait_for(lambda: _is_over(node.status(), len(sent)), log=node.log)
    assert archive.captured() == Counter(sent)
    results = [event["instance"] for event in read_events(node.spool, "sent")]
    assert len(set(results)) == archive.count()
    assert {each["SOPInstanceUID"] for each in archive.instances()} == set(results)
    scored = Counter(event["series"] for event in read_events(node.spool, "scored"))
    complete = Counter(event["series"] for event in read_events(node.spool, "complete"))
    assert scored == complete
    assert Counter(event["instance"] for event in read_events(
        node.spool, "received", "found")) == Counter(sent)
    for folder in ("received", "results"):  # a file is deleted after what is recorded of it
        wait_for(lambda place=node.spool / folder: not list(place.iterdir()))


def _is_over(status: Any, count: int) -> bool:
    return (status.arriving, status.to_score, status.to_send, status.dead) == (0, 0, 0, ()) and (
        status.sent >= count)


def as_json(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]
