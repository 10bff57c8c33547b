"""Serving models to other programs."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scrd_fast.cli.app import Quiet, Trust, app, example

if TYPE_CHECKING:
    from collections.abc import Callable


@app.command(epilog=example("scrd-fast serve model.scrd",
                            "scrd-fast serve brain=brain.scrd knee:2=new/knee.scrd --port 9000"))
def serve(
    models: Annotated[list[str], typer.Argument(
        help="Engine files (.scrd), as PATH, NAME=PATH or NAME:VERSION=PATH; without a name that"
             " of the file.")],
    host: Annotated[str, typer.Option(
        help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(
        help="HTTP port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(
        help="gRPC port; 0 takes any that is free, -1 none.", min=-1, max=65535)] = 8001,
    most_waiting: Annotated[int, typer.Option(
        help="Images that may wait for a model; beyond that requests are refused at once.",
        min=1)] = 256,
    gather_ms: Annotated[float, typer.Option(
        help="Milliseconds that an image may wait for others, to go through the network together;"
             " with 0 only what waits anyhow does.", min=0, max=60_000)] = 0,
    most_seconds: Annotated[float, typer.Option(
        help="Longest that a request may take, whatever deadline it names.", min=0.001)] = 60,
    receive_seconds: Annotated[float, typer.Option(
        help="Seconds in which a request must have come.", min=0.001)] = 30,
    most_megabytes: Annotated[int, typer.Option(
        help="Largest request; four such may be in memory.", min=1, max=2**20)] = 64,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    token_file: Annotated[Path | None, typer.Option(
        help="File with the token that clients must send as 'Authorization: Bearer'.")] = None,
    allow_load: Annotated[bool, typer.Option(
        "--allow-load", help="Let clients load these files anew, and unload them.")] = False,
    trace: Annotated[bool, typer.Option(
        "--trace", help="Send a trace of each request to OTEL_EXPORTER_OTLP_ENDPOINT.")] = False,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Answer the Open Inference Protocol (KServe V2) over HTTP and gRPC until it is stopped."""
    import asyncio
    import logging

    from scrd_fast.errors import explain_missing
    from scrd_fast.progress import tell

    with explain_missing("serve", "serve"):
        from scrd_fast.serving.listening import is_local
        from scrd_fast.serving.model import Terms
        from scrd_fast.serving.repository import ModelSource
        from scrd_fast.serving.server import ServerOptions
        from scrd_fast.serving.server import serve as run

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    tracing = None
    if trace:
        with explain_missing("--trace", "tracing"):
            from scrd_fast.serving.tracing import OpenTelemetry

            tracing = OpenTelemetry()
    options = ServerOptions(host, port, None if grpc_port < 0 else grpc_port,
                            most_megabytes << 20, receive_seconds, certificate=tls_cert,
                            key=tls_key)
    token = None if token_file is None else _read_token(token_file)
    if not is_local(host) and (token is None or tls_cert is None):
        lacks = " and ".join([*(["--token-file"] if token is None else []),
                              *(["--tls-cert"] if tls_cert is None else [])])
        tell(f"warning: --host {host}: others reach this service; it has no {lacks}")

    async def go(ready: "Callable[[str, str | None], None]") -> None:
        await run([ModelSource.parse(each) for each in models], options,
                  Terms(most_waiting, gather_ms / 1000, most_seconds), token=token,
                  trace=tracing, trust=trust, may_load=allow_load, tell=ready)

    def ready(http: str, grpc: str | None) -> None:
        # A disk that is full is no reason not to serve.
        with contextlib.suppress(OSError):
            tell(f"ready: {http}" + (f", gRPC {grpc}" if grpc else ""), enabled=not quiet)

    asyncio.run(go(ready))


def _read_token(path: Path) -> str:
    from scrd_fast.errors import InputError

    try:
        return path.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "other bytes"
        raise InputError(f"--token-file: expected a file of ASCII characters, got: {reason}"
                         ) from error
