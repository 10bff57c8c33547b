"""A node among real programs: dcmtk sends, Orthanc receives and asks for storage commitment."""

import contextlib
import socket
import subprocess
import threading
import time

import pydicom
import pytest

from tests.cli.commands import run_here
from tests.serving.dicom.conftest import (
    SECONDARY_CAPTURE,
    as_json,
    check_all_arrived_once,
    read_events,
    run_archive,
    run_node,
    skip_without_tools,
    wait_for,
    write_study,
)
from tests.support.orthanc import ask, find_ports, get_json

skip_without_tools()

NAME = "Lovelace^Ada"


def count_dead(node):
    """Files that were given up; they move after what is recorded of them."""
    return len(list((node.spool / "dead").rglob("*.dcm")))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A folder with two studies, of 4 and 3 slices, and their instances."""
    folder = tmp_path_factory.mktemp("studies")
    return folder, [*write_study(folder / "a", 41, 4, PatientName=NAME, PatientID="LOVELACE7"),
                    *write_study(folder / "b", 42, 3, PatientName=NAME, PatientID="LOVELACE7")]


def test_results_lie_in_their_studies(small_file, studies, archive, tmp_path):
    """Sent twice, on two associations, an instance is one; nothing tells of the patient."""
    folder, sent = studies
    with run_node(small_file, tmp_path / "spool", archive.port, complete_after=2) as node:
        node.send(folder / "a", folder / "b")
        node.send(folder / "a")
        check_all_arrived_once(node, archive, sent)
        listed = {each["MainDicomTags"]["StudyInstanceUID"]: sorted(
                      get_json(archive.ports[0], f"/series/{series}")["MainDicomTags"]["Modality"]
                      for series in each["Series"])
                  for each in get_json(archive.ports[0], "/studies?expand")}
        assert listed == {"1.2.3.41": ["OT", "OT", "SEG", "SR"],
                          "1.2.3.42": ["OT", "OT", "SEG", "SR"]}
        node.send(folder / "b")  # what is done with is known, too
        wait_for(lambda: len(read_events(node.spool, "received again")) == 4 + 3)
        assert archive.count() == (4 + 3) + (3 + 3)
        text = run_here("dicom-status", node.spool)
        assert "listening" in text.stdout
        assert "2 series" in text.stdout
        audit = run_here("dicom-status", node.spool, "--audit").stdout
    (told,) = as_json(run_here("dicom-status", node.spool, "--json").stdout)
    assert (told["listening"], told["done"], told["bytes"]) == (False, 2, 0)
    received = [event for event in as_json(audit) if event["what"] == "received"]
    assert {event["instance"] for event in received} == set(sent)
    assert {event["peer"] for event in received} == {"SENDER@127.0.0.1"}
    files = b"".join(path.read_bytes() for path in node.spool.rglob("*") if path.is_file())
    assert b"ovelace" not in (files + node.log.read_bytes() + audit.encode())
    assert b"OVELACE7" not in (files + node.log.read_bytes() + audit.encode())


@pytest.mark.slow
def test_only_who_is_allowed_may_send(small_file, studies, archive, tmp_path):
    with run_node(small_file, tmp_path / "spool", archive.port, "--allow", "SENDER@127.0.0.0/8",
                  "--allow", "FAR@192.0.2.7") as node:
        for wrong in ({"aet": "OTHER"}, {"aet": "FAR"}, {"aec": "OTHER"}):
            assert node.send(studies[0] / "b", check=False, **wrong).returncode != 0
        assert not read_events(node.spool, "received")
        assert [event["peer"] for event in read_events(node.spool, "rejected")] == [
            "OTHER@127.0.0.1", "FAR@127.0.0.1", "SENDER@127.0.0.1"]
        echo = ["echoscu", "-aec", "SCRD-FAST", "127.0.0.1", str(node.port), "-aet"]
        assert subprocess.run([*echo, "SENDER"], check=False, timeout=60).returncode == 0
        assert subprocess.run([*echo, "OTHER"], check=False, timeout=60).returncode != 0
        node.send(studies[0] / "b")
        check_all_arrived_once(node, archive, studies[1][4:])


@pytest.mark.slow
def test_series_that_are_not_scored(small_file, archive, tmp_path):
    """By modality, by description, by what DICOM marks, by the patient's name; each tells why."""
    kinds = {61: {"Modality": "CT"}, 62: {"SeriesDescription": "3-plane LOCALIZER"},
             63: {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
             64: {"PatientName": "QA^Phantom"}, 65: {"SeriesDescription": "knee"},
             66: {"SeriesDescription": "T1 brain"}}
    for number, elements in kinds.items():
        write_study(tmp_path / "sent" / str(number), number, 2, **{
            "SeriesDescription": "brain", "ProtocolName": "", **elements})
    with run_node(small_file, tmp_path / "spool", archive.port, "--modality", "MR",
                  "--description", "brain|localizer|^$") as node:
        node.send(*(tmp_path / "sent").iterdir())
        wait_for(lambda: node.status().done == 1 and node.status().skipped == 5, log=node.log)
        wait_for(lambda: not list((node.spool / "received").iterdir()))
        assert archive.captured().keys() == {"1.2.3.66.1.1", "1.2.3.66.1.2"}
        told = {event["study"]: event["detail"] for event in read_events(node.spool, "skipped")}
    for number, why in ((61, "its modality is CT, not MR"), (62, "--leave-out"),
                        (63, "localizer"), (64, "phantom"), (65, "--description")):
        assert why in told[f"1.2.3.{number}"]


@pytest.mark.slow
def test_what_no_image_can_be_read_from_is_given_up_and_tried_again(small_file, archive, tmp_path):
    """The rest of its study is scored; the files stay."""
    write_study(tmp_path / "sent" / "bad", 51, 2, Rows=99)  # more than the pixels are
    good = write_study(tmp_path / "sent" / "good", 52, 2)
    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        node.send(*(tmp_path / "sent").iterdir())
        wait_for(lambda: node.status().done == 1 and node.status().dead, log=node.log)
        (dead,) = node.status().dead
        assert "none of 2 images can be scored" in dead.reason
        assert "given up" in run_here("dicom-status", node.spool).stdout
        wait_for(lambda: count_dead(node) == 2)
        assert "1 series" in run_here("dicom-retry", node.spool, "--study", dead.study).stdout
        wait_for(lambda: len(read_events(node.spool, "dead")) == 2 and node.status().dead)
        wait_for(lambda: count_dead(node) == 2)
        assert "0 series" in run_here("dicom-retry", node.spool, "--study", "1.2.3.52").stdout
    assert archive.captured().keys() == set(good)


@pytest.mark.slow
def test_a_full_spool_refuses_and_loses_nothing(small_file, archive, tmp_path):
    """The sender sends the rest again when there is room."""
    sent = write_study(tmp_path / "sent", 71, 6)
    size = sum(path.stat().st_size for path in (tmp_path / "sent").iterdir())
    with run_node(small_file, tmp_path / "spool", archive.port, "--spool-gigabytes",
                  0.5 * size / 1e9) as node:
        done = node.send(tmp_path / "sent", check=False)
        assert done.returncode == 0xA7  # of the status A700, out of resources
        assert 0 < len(read_events(node.spool, "received")) < 6
        for _ in range(4):
            wait_for(lambda: node.status().bytes == 0, log=node.log)
            node.send(tmp_path / "sent", check=False)
        check_all_arrived_once(node, archive, sent)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3, 60])
def test_a_destination_that_is_down(small_file, tmp_path, seconds):
    sent = write_study(tmp_path / "sent", 81, 3)
    ports = find_ports()
    with run_node(small_file, tmp_path / "spool", ports[1]) as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().to_send == 3 + 3, log=node.log)
        time.sleep(seconds)
        assert node.status().to_send == 3 + 3
        assert "6 objects" in run_here("dicom-status", node.spool).stdout
        assert "cannot be reached" in node.status().trouble
        with run_archive(tmp_path / "orthanc", ports) as archive:
            check_all_arrived_once(node, archive, sent)
            assert node.status().trouble is None
        assert node.log.read_text().count("cannot be reached") == 1


@pytest.mark.slow
def test_storage_commitment(small_file, archive, tmp_path):
    """Orthanc sends, asks, and is told of what is held and of what never came."""
    sent = write_study(tmp_path / "sent", 91, 2)
    port, dicom = archive.ports
    with run_node(small_file, tmp_path / "spool", dicom, "--keep", "--peer",
                  f"ORTHANC@127.0.0.1:{dicom}") as node:
        node.send(tmp_path / "sent")
        ask(port, "PUT", "/modalities/node", ["SCRD-FAST", "127.0.0.1", node.port])
        report = get_json_of(ask(port, "POST", "/modalities/node/storage-commitment", {
            "DicomInstances": [{"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
                                "SOPInstanceUID": each} for each in [*sent, "1.2.3.999"]]}))
        place = f"/storage-commitment/{report['ID']}"
        wait_for(lambda: get_json(port, place)["Status"] != "Pending", log=node.log)
        told = get_json(port, place)
        assert {each["SOPInstanceUID"] for each in told["Success"]} == set(sent)
        assert [each["SOPInstanceUID"] for each in told["Failures"]] == ["1.2.3.999"]
        wait_for(lambda: node.status().done == 1, log=node.log)
    assert len(list((node.spool / "received").iterdir())) == 2  # as it was promised


@pytest.mark.slow
def test_without_keeping_nothing_is_committed_to(small_file, archive, tmp_path):
    from pynetdicom import AE
    from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

    with run_node(small_file, tmp_path / "spool", archive.port) as node:
        entity = AE("SENDER")
        entity.add_requested_context(Verification)
        entity.add_requested_context(StorageCommitmentPushModel)
        association = entity.associate("127.0.0.1", node.port, ae_title="SCRD-FAST")
        assert association.is_established
        assert [each.abstract_syntax for each in association.accepted_contexts] == [Verification]
        association.release()


@contextlib.contextmanager
def run_receiver(classes, handle):
    """A destination that takes these classes and C-ECHO alone; gives its port."""
    from pynetdicom import AE, evt
    from pynetdicom.sop_class import Verification

    entity = AE("ORTHANC")
    for each in (*classes, Verification):
        entity.add_supported_context(each)
    server = entity.start_server(("127.0.0.1", 0), block=False,
                                 evt_handlers=[(evt.EVT_C_STORE, handle)])
    yield server.socket.getsockname()[1]
    entity.shutdown()


@pytest.mark.slow
def test_a_destination_that_ends_associations(small_file, tmp_path):
    """After each second answer; results arrive, and none is the worse for it."""
    from pynetdicom import AllStoragePresentationContexts

    stored = []

    def store(event):
        stored.append(str(event.request.AffectedSOPInstanceUID))
        if len(stored) % 2 == 0:
            threading.Timer(0.003, event.assoc.abort).start()
        return 0x0000

    write_study(tmp_path / "sent", 95, 3)
    with run_receiver([each.abstract_syntax for each in AllStoragePresentationContexts],
                      store) as port, run_node(small_file, tmp_path / "spool", port) as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().sent == 3 + 3, log=node.log)
        assert set(stored) == {event["instance"] for event in read_events(node.spool, "sent")}


@pytest.mark.parametrize("use", ["store", "release"])
def test_an_abort_between_two_steps_is_not_waited_for(use, tmp_path):
    """pynetdicom asks whether an association stands, and then uses it. One that was aborted in
    between, as if it stood, answers at once and not when the time for an answer is over."""
    from pynetdicom import build_context

    from scrd_fast.serving.dicom.rules import Peer
    from scrd_fast.serving.dicom.sending import Sending

    write_study(tmp_path / "sent", 98, 1)
    path = next(tmp_path.rglob("*.dcm"))
    sop_class = pydicom.dcmread(path).SOPClassUID
    stored = []

    def store(event):
        stored.append(event.assoc)
        return 0x0000

    with run_receiver([sop_class], store) as port:
        sending = Sending("SENDER", Peer("ORTHANC", "127.0.0.1", port), None)
        association, _ = sending.associate(sending.to, [build_context(sop_class)])
        assert association.send_c_store(path).Status == 0x0000
        stored[0].abort()
        wait_for(lambda: not association.is_alive())
        association.is_established = True
        start = time.monotonic()
        if use == "store":
            assert "Status" not in association.send_c_store(path)
        else:
            association.release()
        assert time.monotonic() - start < 10
        assert association.is_aborted


@pytest.mark.slow
def test_a_destination_that_takes_captures_alone(small_file, tmp_path):
    """It is not away: the others are refused one by one, and tried again later."""
    stored = []

    def store(event):
        stored.append(str(event.request.AffectedSOPInstanceUID))
        return 0x0111 if len(stored) == 1 else 0x0000  # there already

    write_study(tmp_path / "sent", 96, 3)
    with run_receiver([SECONDARY_CAPTURE], store) as port, run_node(
            small_file, tmp_path / "spool", port) as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().sent == 3, log=node.log)
        wait_for(lambda: len(read_events(node.spool, "refused")) > 3, log=node.log)
        assert not read_events(node.spool, "destination away")
        assert "takes no" in node.status().trouble


@pytest.mark.slow
def test_a_destination_whose_name_nobody_knows(small_file, tmp_path):
    write_study(tmp_path / "sent", 97, 2)
    with run_node(small_file, tmp_path / "spool", 104, "--to",
                  "ORTHANC@nowhere.invalid:104") as node:
        node.send(tmp_path / "sent")
        wait_for(lambda: node.status().trouble, log=node.log)
        assert node.process.poll() is None
        assert "cannot be reached" in node.status().trouble


@pytest.mark.slow
def test_what_was_not_agreed_ends_a_connection(small_file, archive, tmp_path):
    """A part of 4 GiB, announced by somebody who has not said who he is; and a stranger's address.
    At once, and not when the time is over in which a part must have come."""
    with run_node(small_file, tmp_path / "spool", archive.port) as node, socket.create_connection(
            ("127.0.0.1", node.port), timeout=15) as connection:
        connection.sendall(b"\x01\x00\xff\xff\xff\xff" + bytes(1000))
        assert is_closed(connection)
    with run_node(small_file, tmp_path / "spool", archive.port, "--allow",
                  "SENDER@192.0.2.1") as node, socket.create_connection(
            ("127.0.0.1", node.port), timeout=15) as connection:
        assert is_closed(connection)
        assert node.send(tmp_path, check=False).returncode != 0
        assert [event["peer"] for event in read_events(node.spool, "rejected")] == ["127.0.0.1"]


def is_closed(connection):
    """Whether the other side ends it, without a word or with an abort."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(100):
            pass
    return True


def get_json_of(body):
    (found,) = as_json(body.decode().replace("\n", ""))
    return found
