"""Who may send, what is scored, and what the ledger of a spool keeps; without a network."""

import sqlite3
import time

import pytest

pytest.importorskip("pydicom", reason="pydicom reads DICOM")

from pydicom import Dataset

from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.errors import DataError, InputError, OutputError
from scrd_fast.serving.dicom.ledger import (
    DEAD,
    DONE,
    SCORED,
    WAITING,
    Instance,
    Ledger,
    Made,
)
from scrd_fast.serving.dicom.rules import Allowed, Peer, SeriesRule
from scrd_fast.serving.dicom.sending import MOST_ATTEMPTS, pause_after
from scrd_fast.serving.dicom.spool import Spool, check_uid


def header(**elements):
    found = Dataset()
    with silent_libraries():  # which say that some is wrong, and so it is
        for keyword, value in elements.items():
            setattr(found, keyword, value)
    return found


@pytest.mark.parametrize(("rule", "elements", "why"), [
    ({}, {"Modality": "MR"}, None),
    ({}, {}, None),
    ({"modalities": ("MR", "CT")}, {"Modality": "CT"}, None),
    ({"modalities": ("MR", "CT")}, {"Modality": "US"}, "its modality is US, not MR or CT"),
    ({"modalities": ("MR",)}, {}, "its modality is not told, not MR"),
    ({"modalities": ("MR",)}, {"Modality": "ADA^LOVELACE"}, "its modality is not told, not MR"),
    ({}, {"SeriesDescription": "Scout"}, "--leave-out"),
    ({}, {"ProtocolName": "head topogram"}, "--leave-out"),
    ({"leave_out": ""}, {"SeriesDescription": "Scout"}, None),
    ({"leave_out": "knee"}, {"SeriesDescription": "KNEE"}, "--leave-out"),
    ({"description": "brain"}, {"SeriesDescription": "T1 Brain"}, None),
    ({"description": "brain"}, {"ProtocolName": "brain"}, None),
    ({"description": "brain"}, {"SeriesDescription": "knee"}, "--description"),
    ({"description": "brain"}, {}, "--description"),
    ({}, {"PatientID": "PHANTOM7"}, "phantom"),
])
def test_series(rule, elements, why):
    told = SeriesRule(**rule).refuse(header(**elements))
    assert (told is None) if why is None else (why in told)


@pytest.mark.parametrize("field", ["description", "leave_out"])
def test_a_rule_that_is_no_pattern(field):
    with pytest.raises(InputError, match=f"--{field.replace('_', '-')}: expected a regular"):
        SeriesRule(**{field: "("})


@pytest.mark.parametrize(("texts", "aet", "address", "is_let_in"), [
    ([], "ANY", "192.0.2.1", True), (["A"], "A", "192.0.2.1", True), (["A"], "B", "::1", False),
    (["A@192.0.2.1"], "A", "192.0.2.1", True), (["A@192.0.2.1"], "A", "192.0.2.2", False),
    (["A@192.0.2.0/24", "B"], "A", "192.0.2.77", True), (["A@192.0.2.0/24"], "A", "::1", False),
    (["A@192.0.2.1"], "A", "::ffff:192.0.2.1", True), (["A@localhost"], "A", "127.0.0.1", True),
    (["A@192.0.2.1"], None, "192.0.2.1", True), (["A@192.0.2.1"], None, "192.0.2.2", False)])
def test_senders(texts, aet, address, is_let_in):
    assert Allowed.parse(texts).lets_in(aet, address) == is_let_in


@pytest.mark.parametrize("text", ["", "A", "A@host", "A@host:0", "A@host:70000", "@host:1", "A@:1",
                                  "SEVENTEEN_LETTERS@host:1", "Ä@host:1", "A@host:1x"])
def test_no_peer(text):
    with pytest.raises(InputError, match=r"^--to: expected"):
        Peer.parse(text, "--to")


def test_peers():
    assert Peer.parse("A B@host.example:104", "--to") == Peer("A B", "host.example", 104)
    assert Peer.parse("A@[::1]:104", "--to") == Peer("A", "::1", 104)
    for text in ("A@[::1]:104", "A@host:104"):
        assert str(Peer.parse(text, "--to")) == text
    with pytest.raises(InputError, match=r"^--allow: expected AET, AET@HOST"):
        Allowed.parse(["A@no such host"])


@pytest.mark.parametrize("value", [None, "", "1.2/../3", "1" * 65, "1.2\n", "a.b", ".1", "1..2"])
def test_no_identifier(value):
    """It becomes the name of a file."""
    with pytest.raises(DataError, match="expected a unique identifier"):
        check_uid(value)


def test_pauses_grow_to_a_minute():
    assert [pause_after(n) for n in (0, 1, 2, 5, 6, 1000)] == [1, 2, 4, 32, 60, 60]


def test_a_result_is_given_up_after_some_attempts_and_tried_again(tmp_path):
    spool = Spool(tmp_path, 10**9)
    ledger = spool.ledger
    spool.accept(Instance("1.1", "1.9", "1.2", "1.3"), b"x", "A@b")
    assert ledger.make_jobs(0) == 1
    job = ledger.begin_scoring()
    spool.results(job).mkdir()
    for name in ("sr-5.1.dcm", "sc-5.2.dcm"):
        (spool.results(job) / name).write_bytes(b"result")
    ledger.record_scored(job, [Made("5.1", "1.9", "sr-5.1.dcm"), Made("5.2", "1.9", "sc-5.2.dcm")],
                         [])
    one, other = ledger.to_send(10)
    for attempt in range(MOST_ATTEMPTS):
        ledger.record_refused(one, "C@d", "no", 0 if attempt + 1 < MOST_ATTEMPTS else None)
        assert ledger.job(job.id).state == SCORED
    ledger.record_sent(other, "C@d")
    assert ledger.job(job.id).state == DEAD
    spool.settle(job)
    assert sorted(path.name for path in tmp_path.rglob("dead/*/*/*")) == [
        "1.1.dcm", one.made.file]
    assert ledger.retry("1.77") == 0
    assert ledger.retry(None) == 1
    spool.settle(job)
    (again,) = ledger.to_send(10)
    assert (again.made, again.attempts) == (one.made, 0)
    assert (spool.results(job) / one.made.file).read_bytes() == b"result"
    ledger.record_sent(again, "C@d")
    spool.settle(job)
    assert ledger.job(job.id).state == DONE
    assert ledger.knows("1.1")
    assert not spool.accept(Instance("1.1", "1.9", "1.2", "1.3"), b"x", "A@b")
    assert not list(tmp_path.rglob("*.dcm"))
    ledger.prune(1)
    assert ledger.knows("1.1")
    time.sleep(0.01)
    ledger.prune(0)
    assert not ledger.knows("1.1")
    spool.close()


def test_later_instances_of_a_series_are_a_job_of_their_own(tmp_path):
    spool = Spool(tmp_path, 10**9)
    spool.accept(Instance("1.1", "1.9", "1.2", "1.3"), b"x", "A@b")
    assert spool.ledger.make_jobs(1000) == 0
    assert spool.ledger.make_jobs(0) == 1
    spool.accept(Instance("1.2", "1.9", "1.2", "1.3"), b"x", "A@b")
    assert spool.ledger.make_jobs(0) == 1
    first, later = spool.ledger.jobs(WAITING)
    assert (spool.ledger.instances(first), spool.ledger.instances(later)) == (["1.1"], ["1.2"])
    told = [event["detail"] for event in spool.ledger.events() if event["what"] == "complete"]
    assert "earlier" in told[1]
    assert "earlier" not in told[0]
    spool.close()


def test_a_series_that_kills_holds_up_no_other(tmp_path):
    spool = Spool(tmp_path, 10**9)
    for number in (1, 2):
        spool.accept(Instance(f"1.{number}", "1.9", "1.2", f"1.3.{number}"), b"x", "A@b")
        spool.ledger.make_jobs(0)
    assert [spool.ledger.begin_scoring().series for _ in range(4)] == [
        "1.3.1", "1.3.2", "1.3.1", "1.3.2"]
    spool.close()


def test_room(tmp_path):
    spool = Spool(tmp_path, 10)
    assert spool.accept(Instance("1.1", "1.9", "1.2", "1.3"), b"x" * 8, "A@b")
    with pytest.raises(OutputError, match="expected room for 3 bytes, got a spool that holds 8"):
        spool.accept(Instance("1.2", "1.9", "1.2", "1.3"), b"x" * 3, "A@b")
    assert spool.accept(Instance("1.3", "1.9", "1.2", "1.3"), b"x" * 2, "A@b")
    spool.close()


def test_a_spool_is_of_one_process_and_of_this_version(tmp_path):
    spool = Spool(tmp_path / "spool", 10)
    with pytest.raises(InputError, match="another dicom-listen works on"):
        Spool(tmp_path / "spool", 10)
    spool.close()
    connection = sqlite3.connect(tmp_path / "spool" / "spool.sqlite")
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(DataError, match="expected a spool of version 1, got version 9"):
        Spool(tmp_path / "spool", 10)
    (tmp_path / "spool" / "spool.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="expected the database of a spool"):
        Ledger(tmp_path / "spool", create=False)
    with pytest.raises(DataError, match="expected the spool of a DICOM node"):
        Ledger(tmp_path, create=False)


def test_only_what_is_kept_is_committed_to(tmp_path):
    """What came while nothing was kept may be gone by tomorrow; what was kept stays for good."""
    spool = Spool(tmp_path, 10**9)
    spool.accept(Instance("1.1", "1.9", "1.2", "1.3"), b"x", "A@b")
    spool.close()
    spool = Spool(tmp_path, 10**9, keep=True)
    spool.accept(Instance("1.2", "1.9", "1.2", "1.3"), b"x", "A@b")
    assert [spool.is_kept(*each) for each in (("1.1", "1.9"), ("1.2", "1.9"), ("1.2", "1.8"),
                                              ("1.3", "1.9"))] == [False, True, False, False]
    spool.close()
    spool = Spool(tmp_path, 10**9)
    spool.ledger.make_jobs(0)
    job = spool.ledger.begin_scoring()
    spool.ledger.record_scored(job, [], [])
    spool.settle(job)
    assert [path.stem for path in (tmp_path / "received").iterdir()] == ["1.2"]
    assert spool.is_kept("1.2", "1.9")
    assert spool.ledger.held_bytes() == 0
    (tmp_path / "received" / "1.2.dcm").unlink()
    assert not spool.is_kept("1.2", "1.9")
    spool.close()
