"""Bringing results to their destination, and answers to those who ask for storage commitment."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from scrd_fast.serving.dicom.ledger import AWAY, BACK, ToSend
from scrd_fast.serving.dicom.receive import make_report
from scrd_fast.serving.dicom.rules import Peer
from scrd_fast.serving.dicom.spool import Spool

if TYPE_CHECKING:
    from pynetdicom.association import Association

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 8  # for an object that a destination answers, but does not take
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds
_TOGETHER = 100  # objects on one association
_SECONDS = 30.0  # to wait for an answer
_ENDED = "an association ended while it was sent to"
# It was stored, changed somehow (PS3.4 B.2.3); it was there already (PS3.7 C.5.5).
_STORED = (0x0000, 0xB000, 0xB006, 0xB007, 0x0111)


def pause_after(attempts: int) -> float:
    """Seconds to wait after so many attempts that failed."""
    return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2**min(attempts, 30)))


@dataclass
class Sending:
    """Where results go. aet: what this node is called; tls: None for plain TCP."""

    aet: str
    to: Peer
    tls: SSLContext | None
    _failures: int = field(default=0, init=False)  # of associations, one after the other
    _not_before: float = field(default=0.0, init=False)

    def do_next(self, spool: Spool, stopped: Callable[[], bool]) -> bool:
        """Send what is due; False where nothing is, or the destination is not to be asked yet."""
        answered = self._answer_commitment(spool)
        return (not stopped() and self._send_due(spool, stopped)) or answered

    def _send_due(self, spool: Spool, stopped: Callable[[], bool]) -> bool:
        if time.monotonic() < self._not_before:
            return False
        due = spool.ledger.to_send(_TOGETHER)
        if not due:
            return False
        association, reason = self.associate(self.to, _contexts(due))
        if association is None:
            self._fail(spool, reason)
            return False
        if self._failures:
            log.warning("%s answers again", self.to)
            with spool.ledger.change(durable=False):
                spool.ledger.tell(BACK, peer=str(self.to))
        self._failures = 0
        try:
            for each in due:
                if stopped() or not self._send(spool, association, each):
                    break
        finally:
            association.release() if association.is_established else association.abort()
        return True

    def _fail(self, spool: Spool, reason: str) -> None:
        if not self._failures:  # told once, not each minute
            log.warning("%s cannot be reached, results wait: %s", self.to, reason)
            with spool.ledger.change(durable=False):
                spool.ledger.tell(AWAY, peer=str(self.to), detail=reason)
        self._not_before = time.monotonic() + pause_after(self._failures)
        self._failures += 1

    def _send(self, spool: Spool, association: "Association", each: ToSend) -> bool:
        """Send one object; False where the association is over."""
        path = spool.results(each.job) / each.made.file
        if not path.exists():  # it was given up, and is tried again
            spool.settle(each.job)
        if not path.exists():
            self._refuse(spool, each, "its file is gone from the spool", last=True)
            return True
        if not any(context.abstract_syntax == each.made.sop_class
                   for context in association.accepted_contexts):
            self._refuse(spool, each, f"the destination takes no {each.made.sop_class}")
            return True
        try:
            status = association.send_c_store(path).get("Status")
        except RuntimeError:  # it ended between two objects: the fault of neither
            self._fail(spool, _ENDED)
            return False
        except ValueError:  # an element does not fit into what the destination reads
            self._refuse(spool, each, "it cannot be encoded as the destination asks")
            return True
        if status is None:
            self._refuse(spool, each, "the association ended before an answer came")
            self._fail(spool, _ENDED)
            return False
        if status in _STORED:
            if spool.ledger.record_sent(each, str(self.to)):
                spool.settle(each.job)
        else:
            self._refuse(spool, each, f"the destination answered with status {status:04x}")
        return True

    def _refuse(self, spool: Spool, each: ToSend, reason: str, *, last: bool = False) -> None:
        attempts = each.attempts + 1
        last = last or attempts >= MOST_ATTEMPTS
        log.warning("not taken by %s (attempt %s of %s): %s: %s", self.to, attempts, MOST_ATTEMPTS,
                    each.made.uid, reason)
        if spool.ledger.record_refused(each, str(self.to), reason,
                                       None if last else pause_after(attempts)):
            spool.settle(each.job)

    def associate(self, to: Peer, contexts: Sequence[Any], **more: Any
                  ) -> "tuple[Association | None, str]":
        """An association, or None and why there is none."""
        from pynetdicom import AE, evt

        entity = AE(self.aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _SECONDS
        entity.connection_timeout = _SECONDS
        tls = None if self.tls is None else (self.tls, to.host)
        try:
            association = entity.associate(to.host, to.port, list(contexts), to.aet, max_pdu=0,
                                           tls_args=tls,
                                           evt_handlers=[(evt.EVT_ABORTED, _wake)], **more)
        except OSError as error:  # the name of a host that nobody knows now
            return None, error.strerror or type(error).__name__
        if association.is_established:
            return association, ""
        reason = ("it rejected the association" if association.is_rejected else
                  "no association came about")
        return None, reason

    def _answer_commitment(self, spool: Spool) -> bool:
        """Tell one who asked for storage commitment; False where nobody is to be told now."""
        from pynetdicom import build_context, build_role
        from pynetdicom.sop_class import (
            StorageCommitmentPushModel,
            StorageCommitmentPushModelInstance,
        )

        due = spool.ledger.due_commitment()
        if due is None:
            return False
        number, peer, report, attempts = due
        association, reason = self.associate(
            Peer.parse(peer, "--peer"), [build_context(StorageCommitmentPushModel)],
            ext_neg=[build_role(StorageCommitmentPushModel, scp_role=True)])
        if association is not None:
            event, found = make_report(json.loads(report))
            try:
                status, _ = association.send_n_event_report(
                    found, event, StorageCommitmentPushModel, StorageCommitmentPushModelInstance)
                code = status.get("Status")
            except RuntimeError:  # the association has ended
                code = None
            association.release() if association.is_established else association.abort()
            if code == 0:
                spool.ledger.end_commitment(number, peer, "told", None)
                return True
            reason = "no answer came" if code is None else f"it answered with status {code:04x}"
        last = attempts + 1 >= MOST_ATTEMPTS
        log.warning("storage commitment: %s was not told%s: %s", peer,
                    " and will not be" if last else "", reason)
        spool.ledger.end_commitment(number, peer, reason, None if last else pause_after(attempts))
        return True


def _wake(event: Any) -> None:
    """Answer whoever waits on an association that was aborted: it is over.

    pynetdicom's own thread may have taken the news from both queues already, and the other would
    wait for the whole time that an answer may take. After this event that thread reads no more."""
    from pynetdicom.pdu_primitives import A_ABORT

    event.assoc.dimse.msg_queue.put((None, None))
    event.assoc.dul.to_user_queue.put(A_ABORT())


def _contexts(due: Sequence[ToSend]) -> list[Any]:
    """What is proposed: the classes of what is to be sent, in explicit little endian, as they are,
    and C-ECHO's, so that a destination that takes none of the classes is no one that is away."""
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
    from pynetdicom import build_context
    from pynetdicom.sop_class import Verification

    syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
    return [build_context(Verification), *(
        build_context(each, syntaxes) for each in sorted({each.made.sop_class for each in due}))]
