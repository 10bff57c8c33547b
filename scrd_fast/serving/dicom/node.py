"""The node itself: it listens, scores and sends, each in a thread of its own, until it is stopped.
"""

import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.errors import InputError, OutputError
from scrd_fast.serving.dicom.receive import MOST_PDU, Receiver
from scrd_fast.serving.dicom.rules import Allowed, Peer
from scrd_fast.serving.dicom.scoring import Scoring
from scrd_fast.serving.dicom.sending import Sending
from scrd_fast.serving.dicom.spool import Spool
from scrd_fast.serving.listening import load_authority, load_pair

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # between looks for work
_PRUNE_SECONDS = 3600.0
_ASSOCIATIONS = 32


@dataclass(frozen=True)
class NodeOptions:
    """How a node listens. complete_after: seconds without another instance after which a study is
    complete; remember_days: how long instances that are done with are known."""

    aet: str
    host: str
    port: int
    allowed: Allowed
    peers: tuple[Peer, ...]
    complete_after: float
    remember_days: float
    tls: ssl.SSLContext | None


def listen(options: NodeOptions, spool: Spool, scoring: Scoring, sending: Sending,
           ready: Callable[[int], None], stopped: threading.Event) -> None:
    """Run a node until `stopped` is set; ready: is told the port once it listens.

    Raises InputError where the address cannot be listened on, and whatever ended one of the
    threads: what was accepted is in the spool then, and the next start goes on.
    """
    from pynetdicom import AE, AllStoragePresentationContexts, _config
    from pynetdicom.sop_class import StorageCommitmentPushModel, Verification

    # It would make texts of all that is sent, which nobody may read.
    _config.LOG_HANDLER_LEVEL = "none"
    entity = AE(options.aet)
    entity.require_called_aet = True
    entity.maximum_associations = _ASSOCIATIONS
    entity.maximum_pdu_size = MOST_PDU
    entity.add_supported_context(Verification)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), _transfer_syntaxes())
    if spool.keep:
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    receiver = Receiver(spool, options.allowed, {peer.aet: peer for peer in options.peers})
    try:
        server = entity.start_server((options.host, options.port), block=False,
                                     ssl_context=options.tls, evt_handlers=receiver.handlers())
    except OSError as error:
        raise InputError(f"--host, --port: cannot listen on {options.host}, port {options.port}:"
                         f" {error.strerror}") from error
    assert server is not None
    failures: list[BaseException] = []
    workers = [threading.Thread(target=_work, args=(name, step, stopped, failures), name=name)
               for name, step in (
                   ("score", lambda: scoring.do_next(spool, stopped.is_set)),
                   ("send", lambda: sending.do_next(spool, stopped.is_set)),
                   ("watch", _Watch(spool, options)))]
    with silent_libraries():  # once, and not for each instance anew
        try:
            with spool.ledger.change():
                spool.ledger.tell("started")
            for worker in workers:
                worker.start()
            ready(server.socket.getsockname()[1])
            stopped.wait()
        finally:
            stopped.set()
            entity.shutdown()  # ends associations: who gets no answer sends again
            for worker in workers:
                if worker.ident is not None:
                    worker.join()
    if failures:
        raise failures[0]
    with spool.ledger.change():
        spool.ledger.tell("stopped")


@dataclass
class _Watch:
    """Finds studies that are complete, and forgets what is long over."""

    spool: Spool
    options: NodeOptions
    pruned: float = -math.inf

    def __call__(self) -> bool:
        if time.monotonic() - self.pruned > _PRUNE_SECONDS:
            self.spool.ledger.prune(self.options.remember_days)
            self.pruned = time.monotonic()
        self.spool.ledger.make_jobs(self.options.complete_after)
        return False


def _work(name: str, step: Callable[[], bool], stopped: threading.Event,
          failures: list[BaseException]) -> None:
    """Do one step after the other. A disk that refuses is waited for; anything else that ends a
    thread ends the node, for it would go on as if all were well."""
    while not stopped.is_set():
        try:
            if not step():
                stopped.wait(_LOOK_SECONDS)
        except OutputError as error:
            log.warning("%s: %s", name, error)
            stopped.wait(10)
        except BaseException as error:
            failures.append(error)
            stopped.set()


def _transfer_syntaxes() -> list[str]:
    """All but the deflated one, of which a small file may be large in memory."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    from pynetdicom import ALL_TRANSFER_SYNTAXES

    return [each for each in ALL_TRANSFER_SYNTAXES if each != DeflatedExplicitVRLittleEndian]


class _ListenerContext(ssl.SSLContext):
    """Leaves the handshake to the connection's own thread; see Receiver."""

    def wrap_socket(self, sock: socket.socket, **options: Any) -> ssl.SSLSocket:  # type: ignore[override]
        return super().wrap_socket(sock, **options | {"do_handshake_on_connect": False})


def listener_tls(certificate: Path, key: Path, authority: Path | None) -> ssl.SSLContext:
    """For listening; authority: whose certificates senders must show, None for none."""
    context = _ListenerContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, certificate, key)
    if authority is not None:
        load_authority(context, authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def sender_tls(certificate: Path | None, key: Path | None, authority: Path | None
               ) -> ssl.SSLContext:
    """For sending; authority: of the destination's certificate, None for those of the system."""
    context = ssl.create_default_context()
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authority(context, authority)
    if certificate is not None and key is not None:
        load_pair(context, certificate, key)
    return context
