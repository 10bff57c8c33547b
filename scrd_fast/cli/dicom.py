"""A DICOM node, and looking at what it is doing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scrd_fast.cli.app import (
    OBJECTS,
    OBJECTS_HELP,
    UID_ROOT_HELP,
    Json,
    Quiet,
    Trust,
    app,
    check_objects,
    example,
)

if TYPE_CHECKING:
    from ssl import SSLContext

SPOOL = Path("spool")
Spool = Annotated[Path, typer.Argument(help="Folder of the node's spool.")]


@app.command(epilog=example(
    "scrd-fast dicom-listen --engine model.scrd --spool spool/ --to ARCHIVE@10.0.0.5:104"
    " --host 0.0.0.0 --allow SCANNER@10.0.0.7 --modality MR"))
def dicom_listen(
    engine: Annotated[Path, typer.Option(help="Engine file (.scrd).")],
    to: Annotated[str, typer.Option(help="Where results go, as AET@HOST:PORT.")],
    spool: Annotated[Path, typer.Option(
        help="Folder for what was received and not sent on yet, on a disk that lasts.")] = SPOOL,
    aet: Annotated[str, typer.Option(
        help="What this node is called; associations that call another are rejected."
    )] = "SCRD-FAST",
    host: Annotated[str, typer.Option(
        help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(
        help="Port; 0 takes any that is free.", min=0, max=65535)] = 11112,
    allow: Annotated[list[str] | None, typer.Option(
        help="Who may send, as AET, AET@HOST or AET@10.1.0.0/16; again for more. Needed with a host"
             " that others reach.")] = None,
    modality: Annotated[str | None, typer.Option(
        help="Modalities that are scored, with commas between; all without.")] = None,
    description: Annotated[str | None, typer.Option(
        help="Regular expression that the description or the protocol of a series must match."
    )] = None,
    leave_out: Annotated[str | None, typer.Option(
        help="Regular expression of series that are not scored, instead of localizers, scouts,"
             " surveys, topograms and phantoms by name. Those that DICOM itself marks never are."
    )] = None,
    complete_after: Annotated[float, typer.Option(
        help="Seconds without another image after which a study is complete.", min=0)] = 60,
    objects: Annotated[str, typer.Option(
        help=f"What is sent, of {OBJECTS_HELP}")] = OBJECTS,
    uid_root: Annotated[str | None, typer.Option(
        help=f"Of what is sent: {UID_ROOT_HELP}")] = None,
    spool_gigabytes: Annotated[float, typer.Option(
        help="Received files beyond this are refused, and sent again by their sender.",
        min=0)] = 50,
    keep: Annotated[bool, typer.Option(
        "--keep", help="Keep what is received from now on when its results were sent, and commit to"
                       " it where a sender asks for storage commitment.")] = False,
    peer: Annotated[list[str] | None, typer.Option(
        help="With --keep: where one who asks for storage commitment is answered, as"
             " AET@HOST:PORT; again for more.")] = None,
    remember_days: Annotated[float, typer.Option(
        help="Days that an image is known to be done with, so that it is one when it comes again,"
             " and that events are kept.", min=0)] = 90,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_ca: Annotated[Path | None, typer.Option(
        help="Authority, PEM, whose certificates others must show.")] = None,
    to_tls: Annotated[bool, typer.Option("--to-tls", help="Send results by TLS.")] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Receive studies by C-STORE, score them, and send results back into them, until stopped."""
    import contextlib
    import logging
    import math
    import signal
    import threading

    from scrd_fast.engine.load import load_engine
    from scrd_fast.errors import expect, explain_missing
    from scrd_fast.progress import show_progress, tell

    with explain_missing("dicom-listen", "dicom"):
        import pynetdicom  # noqa: F401

        from scrd_fast.serving.dicom.node import NodeOptions, listen
        from scrd_fast.serving.dicom.rules import LEAVE_OUT, Allowed, Peer, SeriesRule, check_aet
        from scrd_fast.serving.dicom.scoring import Scoring
        from scrd_fast.serving.dicom.sending import Sending
        from scrd_fast.serving.dicom.spool import Spool
        from scrd_fast.serving.listening import is_local

    kinds = [each.strip() for each in objects.split(",")]
    check_objects(kinds, uid_root)
    destination, allowed = Peer.parse(to, "--to"), Allowed.parse(allow or [])
    expect(is_local(host) or bool(allowed.senders), "--allow",
           f"somebody who may send, as others reach --host {host}", "nobody")
    expect(math.isfinite(spool_gigabytes), "--spool-gigabytes", "a number", spool_gigabytes)
    expect(keep or not peer, "--peer", "--keep with it", "none")
    rule = SeriesRule(
        tuple(each.strip() for each in (modality or "").split(",") if each.strip()), description,
        LEAVE_OUT if leave_out is None else leave_out)
    tls, tls_to = _make_tls(tls_cert, tls_key, tls_ca, to_tls)
    options = NodeOptions(
        check_aet(aet, "--aet"), host, port, allowed,
        tuple(Peer.parse(each, "--peer") for each in peer or ()), complete_after, remember_days,
        tls)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # it may quote what is sent
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    held = Spool(spool, int(spool_gigabytes * 1e9), keep=keep)
    with contextlib.closing(held):
        with show_progress("loading", enabled=not quiet):
            loaded = load_engine(engine, trust=trust)
        with loaded:
            listen(options, held, Scoring(loaded, rule, kinds, uid_root),
                   Sending(options.aet, destination, tls_to),
                   lambda at: tell(f"ready: {options.aet}@{host}:{at}", enabled=not quiet), stopped)


def _make_tls(cert: Path | None, key: Path | None, authority: Path | None, to_tls: bool
              ) -> "tuple[SSLContext | None, SSLContext | None]":
    """For listening and for sending."""
    from scrd_fast.errors import expect
    from scrd_fast.serving.dicom.node import listener_tls, sender_tls
    from scrd_fast.serving.listening import check_pair

    check_pair(cert, key)
    expect(authority is None or cert is not None or to_tls, "--tls-ca",
           "--tls-cert or --to-tls with it", "none")
    return (None if cert is None or key is None else listener_tls(cert, key, authority),
            sender_tls(cert, key, authority) if to_tls else None)


@app.command(epilog=example("scrd-fast dicom-status spool/",
                            "scrd-fast dicom-status spool/ --audit"))
def dicom_status(
    spool: Spool = SPOOL,
    as_json: Json = False,
    audit: Annotated[bool, typer.Option(
        "--audit", help="All that happened instead, a JSON object in each line, without names.",
    )] = False,
) -> None:
    """Show what a DICOM node has received, is scoring and sending, and what was given up."""
    import json
    from contextlib import closing

    from scrd_fast.serving.dicom.ledger import Ledger
    from scrd_fast.serving.dicom.status import read_status

    if audit:
        with closing(Ledger(spool, create=False)) as ledger:
            for event in ledger.events():
                typer.echo(json.dumps(event))
        return
    status = read_status(spool)
    for line in [json.dumps(status.record())] if as_json else status.lines():
        typer.echo(line)


@app.command(epilog=example("scrd-fast dicom-retry spool/"))
def dicom_retry(
    spool: Spool = SPOOL,
    study: Annotated[str | None, typer.Option(
        help="Unique identifier of the one study; all without.")] = None,
) -> None:
    """Let a DICOM node try again what it gave up; it may be running."""
    from contextlib import closing

    from scrd_fast.serving.dicom.ledger import Ledger

    with closing(Ledger(spool, create=False)) as ledger:
        typer.echo(f"{ledger.retry(study)} series will be tried again")
