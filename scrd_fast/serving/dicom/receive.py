"""Taking in what is sent: C-STORE, C-ECHO and requests of storage commitment."""

import io
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from scrd_fast.errors import DataError, OutputError
from scrd_fast.serving.dicom.rules import Allowed, Peer
from scrd_fast.serving.dicom.spool import Spool, check_uid, read_instance

if TYPE_CHECKING:
    from pydicom import Dataset
    from pynetdicom.events import Event

log = logging.getLogger(__name__)

_SUCCESS, _NO_RESOURCES, _OTHER_CLASS, _NOT_UNDERSTOOD = (  # PS3.4 B.2.3
    0x0000, 0xA700, 0xA900, 0xC000)
_PROCESSING_FAILED, _NO_SUCH_INSTANCE, _NO_SUCH_ACTION, _NOT_AUTHORISED = (  # PS3.7 C
    0x0110, 0x0112, 0x0123, 0x0124)
_REQUEST = 1  # the action of storage commitment (PS3.4 J.3.2)
_COMMITTED, _PARTLY = 1, 2  # the events that answer it (PS3.4 J.3.3)

MOST_BYTES = 2**30  # of an object, which is in memory until it is stored
MOST_PDU = 2**20  # bytes that are asked for at most: a file comes in one or few parts
_SECONDS = 30.0  # in which a part must have come
_TELL_SECONDS = 60.0  # between two events of the same sender who is not let in


class Receiver:
    """Answers associations. peers: where those who ask for storage commitment are answered."""

    def __init__(self, spool: Spool, allowed: Allowed, peers: dict[str, Peer]) -> None:
        self._spool, self._allowed, self._peers = spool, allowed, peers
        self._told: dict[str, float] = {}

    def handlers(self) -> list[tuple[Any, Callable[..., Any]]]:
        """What pynetdicom calls."""
        from pynetdicom import evt

        return [(evt.EVT_CONN_OPEN, self._open), (evt.EVT_REQUESTED, self._check_sender),
                (evt.EVT_REJECTED, self._tell_rejected),
                (evt.EVT_PDU_SENT, _expect_more), (evt.EVT_C_STORE, self._store),
                (evt.EVT_C_ECHO, lambda event: _SUCCESS), (evt.EVT_N_ACTION, self._commit)]

    def _open(self, event: "Event") -> None:
        """Before a first byte is read: end a connection from where nobody may call; bound what the
        others can hold of memory and time."""
        connection = event.assoc.dul.socket
        connection.recv = _Reader(connection.recv)
        address = event.address[0]
        if not self._allowed.lets_in(None, address):
            connection.close()
            self._tell_stranger(address, "no sender may call from there")
            return
        connection.socket.settimeout(_SECONDS)
        if isinstance(connection.socket, ssl.SSLSocket):
            try:
                # Here, in the connection's own thread: another that says nothing stops nobody.
                connection.socket.do_handshake()
            except OSError as error:  # of TLS, too
                log.warning("connection from %s: %s", address, type(error).__name__)
                connection.close()

    def _check_sender(self, event: "Event") -> None:
        requestor = event.assoc.requestor
        request = requestor.primitive
        try:
            lets_in = self._allowed.lets_in(request.calling_ae_title.strip(), requestor.address)
        except ValueError:  # of what is no address: nobody has allowed it
            lets_in = False
        if not lets_in:
            # Rejected for good, by the service user: the calling AE title is not recognised.
            event.assoc.acse.send_reject(1, 1, 3)
            self._tell_rejected(event)

    def _tell_rejected(self, event: "Event") -> None:
        requestor = event.assoc.requestor
        self._tell_stranger(f"{requestor.primitive.calling_ae_title}@{requestor.address}",
                            f"it called {requestor.primitive.called_ae_title}")

    def _tell_stranger(self, peer: str, detail: str) -> None:
        """Once a minute: who is not let in may try as often as he likes."""
        now = time.monotonic()
        self._told = {each: when for each, when in self._told.items()
                      if now - when < _TELL_SECONDS}
        if peer in self._told:
            return
        self._told[peer] = now
        self._tell("rejected", peer, detail)

    def _tell(self, what: str, peer: str, detail: str) -> None:
        log.warning("%s: %s, %s", what, peer, detail)
        try:
            with self._spool.ledger.change(durable=False):
                self._spool.ledger.tell(what, peer=peer, detail=detail)
        except OutputError as error:  # the disk that is full
            log.warning("%s", error)

    def _store(self, event: "Event") -> int:
        """The status of a C-STORE: success once the instance is on the disk, and not before."""
        peer = _name_peer(event)
        try:
            data = event.encoded_dataset()
            instance = read_instance(io.BytesIO(data))
            if (instance.uid, instance.sop_class) != (
                    str(event.request.AffectedSOPInstanceUID),
                    str(event.request.AffectedSOPClassUID)):
                return self._refuse(_OTHER_CLASS, peer, "the request names another object than the"
                                                       " data set")
            self._spool.accept(instance, data, peer)
        except DataError as error:
            return self._refuse(_NOT_UNDERSTOOD, peer, str(error))
        except OutputError as error:
            return self._refuse(_NO_RESOURCES, peer, str(error))
        except Exception as error:  # else pynetdicom answers, and nobody hears of it
            return self._refuse(_NO_RESOURCES, peer, _name_fault(error))
        return _SUCCESS

    def _refuse(self, status: int, peer: str, reason: str) -> int:
        self._tell("not accepted", peer, reason)
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
        except Exception as error:  # as above
            return self._refuse(_PROCESSING_FAILED, _name_peer(event), _name_fault(error)), None
        return _SUCCESS, None

    def _judge(self, asked: "Dataset") -> dict[str, Any]:
        """What is committed to: transaction, and (class, instance) of the held and of the others.
        """
        held: list[tuple[str, str]] = []
        others: list[tuple[str, str]] = []
        for item in asked.get("ReferencedSOPSequence") or ():
            sop_class = check_uid(item.get("ReferencedSOPClassUID"))
            uid = check_uid(item.get("ReferencedSOPInstanceUID"))
            (held if self._spool.is_kept(uid, sop_class) else others).append((sop_class, uid))
        return {"transaction": check_uid(asked.get("TransactionUID")), "held": held,
                "others": others}


class _Reader:
    """Reads from a connection, unless a part is longer than was agreed, which pynetdicom would read
    from anybody, or what came since the last answer is more than an object may be."""

    def __init__(self, read: Callable[[int], bytearray]) -> None:
        self._read, self.unanswered = read, 0

    def __call__(self, count: int) -> bytearray:
        self.unanswered += count
        if count > MOST_PDU or self.unanswered > MOST_BYTES:
            log.warning("connection ended: it sends more than was agreed")
            raise ConnectionAbortedError
        return self._read(count)


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
        return _COMMITTED, found
    found.FailedSOPSequence = [refer(each) for each in report["others"]]
    for item in found.FailedSOPSequence:
        item.FailureReason = _NO_SUCH_INSTANCE
    return _PARTLY, found


def _expect_more(event: "Event") -> None:
    """After an answer: count anew what comes, and let TCP acknowledge it as soon as it comes.

    Else Linux waits up to 40 ms, in the hope of another answer to send along. dcmtk writes the
    first bytes of a request by themselves, and Nagle's algorithm holds all others until those are
    acknowledged: so each instance would take 40 ms.
    """
    quick = getattr(socket, "TCP_QUICKACK", None)
    connection = event.assoc.dul.socket
    if connection is None or connection.socket is None:
        return
    if isinstance(connection.recv, _Reader):
        connection.recv.unanswered = 0
    if quick is not None:
        with suppress(OSError):  # it is closed already
            connection.socket.setsockopt(socket.IPPROTO_TCP, quick, 1)


def _name_fault(error: Exception) -> str:
    """Without its words, which may quote what was sent."""
    return f"a fault of this node: {type(error).__name__}"


def _name_peer(event: "Event") -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title.strip()}@{requestor.address}"
