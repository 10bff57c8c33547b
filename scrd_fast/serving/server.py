"""A service from start to end: its ports, its signals, and what it was given before it ends."""

import asyncio
import contextlib
import gc
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from scrd_fast.errors import fail
from scrd_fast.serving.bodies import Bodies
from scrd_fast.serving.grpc_server import add_port, address_of, make_server
from scrd_fast.serving.http import make_app
from scrd_fast.serving.listening import check_pair, load_pair
from scrd_fast.serving.model import Terms
from scrd_fast.serving.repository import ModelSource, Repository
from scrd_fast.serving.service import Service
from scrd_fast.serving.tracing import Trace

_MOST_HEAD_BYTES = 1 << 16
_GRACE_SECONDS = 30  # in which what was taken is answered at the end
_KEEP_ALIVE_SECONDS = 75  # that a client may wait before its next request


@dataclass(frozen=True)
class ServerOptions:
    """port: 0 for any that is free; grpc_port: None for no gRPC. most_bytes: of one request;
    receive_seconds: in which a request must have come. certificate, key: PEM files, for TLS."""

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    most_bytes: int = 64 << 20
    receive_seconds: float = 30.0
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        check_pair(self.certificate, self.key)


class _Protocol(HttpToolsProtocol):
    """A connection whose requests' heads must come in time and be of some size, as their bodies
    must."""

    receive_seconds = ServerOptions.receive_seconds
    _alarm: asyncio.TimerHandle | None = None  # set while a head is awaited
    _head_bytes = 0
    _unread_alarm: asyncio.TimerHandle | None = None  # set while an answer is not read

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._set_alarm()

    def data_received(self, data: bytes) -> None:
        before = self._alarm
        super().data_received(data)
        # All of it was head where the same one is still awaited.
        if before is not None and before is self._alarm:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"head: expected at most {_MOST_HEAD_BYTES} bytes, got more")

    def pause_writing(self) -> None:
        """The client reads slower than it is answered: it has some time for the rest."""
        super().pause_writing()
        self._unread_alarm = self.loop.call_later(self.receive_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_alarm is not None:
            self._unread_alarm.cancel()
            self._unread_alarm = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._set_alarm()

    def on_headers_complete(self) -> None:
        self._end_alarm()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_alarm()
        if self._unread_alarm is not None:
            self._unread_alarm.cancel()
        super().connection_lost(exc)

    def _set_alarm(self) -> None:
        self._end_alarm()
        self._head_bytes = 0
        self._alarm = self.loop.call_later(self.receive_seconds, self.transport.close)

    def _end_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


class _HttpServer(uvicorn.Server):
    """Leaves signals to `serve`, which ends both servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    sources: Sequence[ModelSource], options: ServerOptions, terms: Terms, *,
    token: str | None = None, trace: Trace | None = None, trust: bool = False,
    may_load: bool = False,
    tell: Callable[[str, str | None], None] = lambda http, grpc: None,
) -> None:
    """Serve models until SIGTERM or SIGINT comes, then answer what was taken.

    tell: is given the addresses once requests are answered there. Raises what loading a model
    raises, and InputError where it cannot listen.
    """
    repository = Repository(sources, terms, trust=trust, may_load=may_load)
    service = Service(repository, token, trace)
    certificate = _read_certificate(options)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    try:
        if not await _done_before(stop, repository.load_all()):
            return
        bodies = Bodies(options.most_bytes, options.receive_seconds)
        http, port, http_task = await _start_http(service, bodies, options)
        scheme = "http" if certificate is None else "https"
        grpc_address = None
        grpc_server = None
        try:
            if options.grpc_port is not None:
                grpc_server = make_server(service, bodies)
                grpc_port = add_port(grpc_server, options.host, options.grpc_port, certificate)
                await grpc_server.start()
                grpc_address = address_of(options.host, grpc_port)
            # Collections shall not look at what stays: 46 000 objects held the loop for 40 ms.
            gc.collect()
            gc.freeze()
            tell(f"{scheme}://{address_of(options.host, port)}", grpc_address)
            await _done_before(stop, http_task)
        finally:
            gc.unfreeze()
            service.is_stopping = True
            http.should_exit = True
            await asyncio.gather(  # raises what ended the server before it was told to
                http_task,
                *([grpc_server.stop(_GRACE_SECONDS)] if grpc_server is not None else []))
    finally:
        await repository.close()
        await asyncio.to_thread(service.trace.close)
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)


async def _done_before(stop: asyncio.Event, work: Awaitable[None]) -> bool:
    """Wait for the end of work, or until the service shall stop; whether it was the former, which
    raises what the work does."""
    stopping, working = asyncio.ensure_future(stop.wait()), asyncio.ensure_future(work)
    await asyncio.wait([stopping, working], return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if working.done():
        working.result()
    return working.done()


async def _start_http(service: Service, bodies: Bodies, options: ServerOptions,
                      ) -> tuple[_HttpServer, int, "asyncio.Task[None]"]:
    """A server that listens, its port, and what runs it."""
    protocol = type("Protocol", (_Protocol,), {"receive_seconds": options.receive_seconds})
    http = _HttpServer(uvicorn.Config(
        make_app(service, bodies), host=options.host, port=options.port, http=protocol,
        loop="asyncio", ws="none", lifespan="off", access_log=False, log_config=None,
        log_level="critical", server_header=False, timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ssl_certfile=options.certificate, ssl_keyfile=options.key))
    task = asyncio.ensure_future(_run(http, options))
    while not http.started:
        done, _ = await asyncio.wait([task], timeout=0.005)
        if done:
            await task  # raises why it did not start
            fail("--port", "a server that starts", "one that ended")
    return http, http.servers[0].sockets[0].getsockname()[1], task


async def _run(http: _HttpServer, options: ServerOptions) -> None:
    try:
        await http.serve()
    except SystemExit:  # what it makes of a port that is taken
        fail("--port", "a port that can be listened on", address_of(options.host, options.port))


def _read_certificate(options: ServerOptions) -> tuple[bytes, bytes] | None:
    """The key and the chain; raises InputError where they do not belong together."""
    if options.certificate is None or options.key is None:
        return None
    load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), options.certificate, options.key)
    return options.key.read_bytes(), options.certificate.read_bytes()

