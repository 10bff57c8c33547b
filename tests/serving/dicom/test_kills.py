"""A node killed at every stage: what it accepted is scored once, and its results arrive once."""

import random
import subprocess
import time

import pytest

from tests.serving.dicom.conftest import (
    check_all_arrived_once,
    read_events,
    read_status,
    run_archive,
    run_node,
    skip_without_tools,
    wait_for,
    write_study,
)
from tests.support.orthanc import find_ports

skip_without_tools()


def test_between_receiving_and_scoring(small_file, archive, tmp_path):
    sent = write_study(tmp_path / "sent", 11, 3)
    with run_node(small_file, tmp_path / "spool", archive.port, complete_after=600) as node:
        node.send(tmp_path / "sent")
        node.kill()
    assert read_status(node.spool).arriving == 3
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        check_all_arrived_once(node, archive, sent)


@pytest.mark.slow
def test_between_scoring_and_sending(small_file, tmp_path):
    """The destination is down until the node was killed."""
    sent, ports = write_study(tmp_path / "sent", 12, 3), find_ports()
    with run_node(small_file, tmp_path / "spool", ports[1]) as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().to_send == 3 + 3, log=node.log)
        node.kill()
    made = {path.name for path in node.spool.rglob("results/*/*")}
    with run_archive(tmp_path / "orthanc", ports) as archive, run_node(
            small_file, tmp_path / "spool", archive.port) as node:
        check_all_arrived_once(node, archive, sent)
        assert len(read_events(node.spool, "scored")) == 1
        assert {f"{each['instance']}.dcm" for each in read_events(node.spool, "sent")} == {
            name.partition("-")[2] for name in made}


@pytest.mark.slow
def test_in_the_middle_of_sending(small_file, archive, tmp_path):
    sent = write_study(tmp_path / "sent", 13, 40)
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().sent > 3, log=node.log)
        node.kill()
    assert read_status(node.spool).to_send > 0
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        check_all_arrived_once(node, archive, sent)
        assert len(read_events(node.spool, "scored")) == 1


@pytest.mark.slow
def test_files_that_the_ledger_does_not_know(small_file, archive, tmp_path):
    """After a loss of power it may lack what came last: the files count, and half ones do not."""
    sent = write_study(tmp_path / "sent", 14, 3)
    received = tmp_path / "spool" / "received"
    received.mkdir(parents=True)
    for uid, path in zip(sent, sorted((tmp_path / "sent").iterdir()), strict=True):
        path.rename(received / f"{uid}.dcm")
    (received / ".scrd-0123456789abcdef.part").write_bytes(b"half")
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        check_all_arrived_once(node, archive, sent)
        assert len(read_events(node.spool, "found")) == 3


@pytest.mark.slow
def test_a_series_that_always_kills_is_given_up(small_file, archive, tmp_path):
    """After so many attempts that the process did not outlive."""
    from scrd_fast.serving.dicom.ledger import Ledger
    from scrd_fast.serving.dicom.scoring import MOST_DEATHS

    sent = write_study(tmp_path / "sent", 15, 2)
    with run_node(small_file, tmp_path / "spool", archive.port, complete_after=600) as node:
        node.send(tmp_path / "sent")
        node.kill()
    ledger = Ledger(node.spool, create=False)
    ledger.make_jobs(0)
    for attempt in range(MOST_DEATHS):
        assert ledger.begin_scoring().attempts == attempt + 1
    ledger.close()
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        wait_for(lambda: node.status().dead, log=node.log)
        assert f"ended {MOST_DEATHS} times" in node.status().dead[0].reason
        wait_for(lambda: {path.stem for path in node.spool.glob("dead/*/received/*")} == set(sent))
        assert archive.count() == 0


@pytest.mark.slow
def test_stopping_is_no_attempt(small_file, tmp_path):
    """However often it is stopped while it scores."""
    import scrd_fast
    from scrd_fast.serving.dicom.rules import SeriesRule
    from scrd_fast.serving.dicom.scoring import Scoring
    from scrd_fast.serving.dicom.spool import Spool, read_instance

    write_study(tmp_path / "sent", 16, 2)
    spool = Spool(tmp_path / "spool", 10**9)
    for path in (tmp_path / "sent").iterdir():
        spool.accept(read_instance(path), path.read_bytes(), "A@b")
    spool.ledger.make_jobs(0)
    with scrd_fast.load_engine(small_file) as engine:
        scoring = Scoring(engine, SeriesRule(), ("sr",), None)
        for _ in range(5):
            assert scoring.do_next(spool, lambda: True)
        (job,) = spool.ledger.jobs("waiting")
        assert job.attempts == 0
        assert scoring.do_next(spool, lambda: False)
    assert spool.ledger.job(job.id).state == "scored"
    spool.close()


@pytest.mark.slow
def test_at_ten_moments(small_file, archive, tmp_path):
    """While it receives, scores and sends; the sender sends again what was not accepted."""
    rng = random.Random(5)
    sent = [uid for number in range(4)
            for uid in write_study(tmp_path / "sent" / str(number), 20 + number, 15)]
    for _ in range(10):
        with run_node(small_file, tmp_path / "spool", archive.port) as node:
            sender = subprocess.Popen(
                ["storescu", "-pdu", "131072", "-R", "+sd", "+r", "-aec", "SCRD-FAST", "127.0.0.1",
                 str(node.port), str(tmp_path / "sent")], stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.2, 4))
            node.kill()
            sender.wait(60)
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        node.send(*(tmp_path / "sent").iterdir())
        check_all_arrived_once(node, archive, sent)
