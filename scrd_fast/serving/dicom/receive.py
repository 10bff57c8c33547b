"""Taking in what is sent: C-STORE, C-ECHO and requests of storage commitment."""

import io
import json
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scrd_fast.errors import DataError, OutputError
from scrd_fast.serving.dicom.rules import Allowed, Peer
from scrd_fast.serving.dicom.spool import FullError, Spool, check_uid, read_instance

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.events import Event

log = logging.getLogger(__name__)

SUCCESS, NO_RESOURCES, OTHER_CLASS, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000  # PS3.4 B.2.3
_PROCESSING_FAILED, _NOT_AUTHORISED, _NO_SUCH_ACTION = 0x0110, 0x0124, 0x0123  # PS3.7 C
_NO_SUCH_INSTANCE = 0x0112
_REQUEST = 1  # the action of storage commitment (PS3.4 J.3.2)
COMMITTED, PARTLY = 1, 2  # the events that answer it (PS3.4 J.3.3)


class Receiver:
    """Answers associations. peers: where those who ask for storage commitment are answered."""

    def __init__(self, spool: Spool, allowed: Allowed, peers: dict[str, Peer]) -> None:
        self._spool, self._allowed, self._peers = spool, allowed, peers

    def handlers(self) -> list[tuple[Any, Callable[..., Any]]]:
        """What pynetdicom calls."""
        from pynetdicom import evt

        return [(evt.EVT_REQUESTED, self._check_sender), (evt.EVT_REJECTED, self._tell_rejected),
                (evt.EVT_PDU_SENT, _acknowledge_at_once), (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_ECHO, lambda event: SUCCESS), (evt.EVT_N_ACTION, self._commit)]

    def _check_sender(self, event: "Event") -> None:
        requestor = event.assoc.requestor
        request = requestor.primitive
        if not self._allowed.lets_in(request.calling_ae_title, requestor.address):
            # Rejected for good, by the service user: the calling AE title is not recognised.
            event.assoc.acse.send_reject(1, 1, 3)
            self._tell_rejected(event)

    def _tell_rejected(self, event: "Event") -> None:
        requestor = event.assoc.requestor
        peer = f"{requestor.primitive.calling_ae_title}@{requestor.address}"
        log.warning("association rejected: %s", peer)
        with self._spool.ledger.change(durable=False):
            self._spool.ledger.tell("rejected", peer=peer, detail="it called"
                                    f" {requestor.primitive.called_ae_title}")

    def _store(self, event: "Event") -> int:
        """The status of a C-STORE: success once the instance is on the disk, and not before."""
        peer = _name_peer(event)
        try:
            data = event.encoded_dataset()
            instance = read_instance(io.BytesIO(data))
            if (instance.uid, instance.sop_class) != (
                    str(event.request.AffectedSOPInstanceUID),
                    str(event.request.AffectedSOPClassUID)):
                return self._refuse(OTHER_CLASS, peer, "the request names another object than the"
                                                       " data set")
            self._spool.accept(instance, data, peer)
        except DataError as error:
            return self._refuse(NOT_UNDERSTOOD, peer, str(error))
        except (FullError, OutputError) as error:
            return self._refuse(NO_RESOURCES, peer, str(error))
        return SUCCESS

    def _refuse(self, status: int, peer: str, reason: str) -> int:
        log.warning("not accepted from %s: %s", peer, reason)
        try:
            with self._spool.ledger.change(durable=False):
                self._spool.ledger.tell("not accepted", peer=peer, detail=reason)
        except OutputError as error:  # the disk that is full
            log.warning("%s", error)
        return status

    def _commit(self, event: "Event") -> tuple[int, None]:
        """The status of an N-ACTION; what becomes of it is told in an association of our own."""
        name = event.assoc.requestor.ae_title.strip()
        if event.action_type != _REQUEST:
            return _NO_SUCH_ACTION, None
        if name not in self._peers:
            return self._refuse(_NOT_AUTHORISED, _name_peer(event), "it asks for storage"
                                f" commitment; --peer {name}@HOST:PORT says where to answer"), None
        try:
            report = self._judge(event.action_information)
            self._spool.ledger.add_commitment(str(self._peers[name]), json.dumps(report))
        except (DataError, OutputError) as error:
            return self._refuse(_PROCESSING_FAILED, _name_peer(event), str(error)), None
        return SUCCESS, None

    def _judge(self, asked: "Dataset") -> dict[str, Any]:
        """What is committed to: transaction, and (class, instance) of the held and of the others.
        """
        held: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for item in asked.get("ReferencedSOPSequence") or ():
            named = (check_uid(item.get("ReferencedSOPClassUID")),
                     check_uid(item.get("ReferencedSOPInstanceUID")))
            (held if self._spool.ledger.knows(named[1]) else others).append(named)
        return {"transaction": check_uid(asked.get("TransactionUID")), "held": held,
                "others": others}


def make_report(report: dict[str, Any]) -> "tuple[int, Dataset]":
    """The event and the data set that answer a request of storage commitment."""
    from pydicom import Dataset

    def refer(named: tuple[str, str]) -> "Dataset":
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = named
        return item

    found = Dataset()
    found.TransactionUID = report["transaction"]
    found.ReferencedSOPSequence = [refer(each) for each in report["held"]]
    if not report["others"]:
        return COMMITTED, found
    found.FailedSOPSequence = [refer(each) for each in report["others"]]
    for item in found.FailedSOPSequence:
        item.FailureReason = _NO_SUCH_INSTANCE
    return PARTLY, found


def _acknowledge_at_once(event: "Event") -> None:
    """Let TCP acknowledge what comes next as soon as it comes.

    After an answer Linux waits up to 40 ms before it acknowledges, in the hope of another answer to
    send along. dcmtk writes the first bytes of a request by themselves, and Nagle's algorithm holds
    back all others until those are acknowledged: so each instance would take 40 ms.
    """
    quick = getattr(socket, "TCP_QUICKACK", None)
    connection = event.assoc.dul.socket
    if quick is not None and connection is not None and connection.socket is not None:
        with suppress(OSError):  # it is closed already
            connection.socket.setsockopt(socket.IPPROTO_TCP, quick, 1)


def _name_peer(event: "Event") -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title.strip()}@{requestor.address}"
