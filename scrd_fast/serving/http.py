"""The protocol over HTTP: paths, bodies, statuses. An ASGI application; see server.py."""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from scrd_fast.errors import CancelledError, OverloadedError, expect
from scrd_fast.serving.bodies import Bodies, Body
from scrd_fast.serving.messages import (
    JSON_LENGTH,
    MOST_IN_JSON,
    answer_body,
    json_bytes,
    parse_json,
    parse_request,
)
from scrd_fast.serving.metrics import CONTENT_TYPE
from scrd_fast.serving.model import MAP
from scrd_fast.serving.openapi import describe
from scrd_fast.serving.repository import ForbiddenError
from scrd_fast.serving.service import Asked, Service
from scrd_fast.serving.status import (
    INTERNAL,
    UnauthenticatedError,
    message_of,
    retry_after,
    status_of,
)

TIMEOUT = "Request-Timeout"  # a header: seconds for which somebody waits for the answer
# Bytes or values of JSON beyond which a thread parses or writes it.
_INLINE = 1 << 14
T = TypeVar("T")
_IS_READ = "scrd_fast.is_read"  # of a request: its body
_PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"": ("index.html", "text/html"), "page.js": ("page.js", "text/javascript"),
               "page.css": ("page.css", "text/css")}
_PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:;"
                 " frame-ancestors 'none'", "X-Content-Type-Options": "nosniff"}


def make_app(service: Service, bodies: Bodies) -> Starlette:
    """The application that answers the protocol's paths, /metrics and a page at /."""
    handlers = _Handlers(service, bodies)
    models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")

    def route(path: str, handle: Callable[[Request], Awaitable[Response]], *, method: str = "GET",
              is_open: bool = False) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                if method != "GET":
                    _check_origin(request)
                if not is_open:
                    service.check_token(request.headers.get("authorization"))
                answer = await handle(request)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                answer = _failure(service, error)
            return _end_unread(request, answer)

        return Route(path, endpoint, methods=[method])

    app = Starlette(routes=[
        route("/v2/health/live", handlers.live, is_open=True),
        route("/v2/health/ready", handlers.ready, is_open=True),
        route("/v2", handlers.server_metadata),
        *(route(f"{path}/ready", handlers.model_ready) for path in models),
        *(route(path, handlers.model_metadata) for path in models),
        *(route(f"{path}/infer", handlers.infer, method="POST") for path in models),
        route("/v2/repository/index", handlers.repository_index, method="POST"),
        route("/v2/repository/models/{name}/load", handlers.load, method="POST"),
        route("/v2/repository/models/{name}/unload", handlers.unload, method="POST"),
        route("/metrics", handlers.metrics),
        route("/openapi.json", handlers.openapi, is_open=True),
        *(route(f"/{name}", handlers.page, is_open=True) for name in _PAGE_FILES),
    ], exception_handlers={HTTPException: _no_such_path})
    app.router.redirect_slashes = False  # it would send clients to whatever host they name
    return app


class _Handlers:
    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service, self._bodies = service, bodies

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._service.is_ready()
        return _json({"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        return _json(self._service.server_metadata())

    async def model_ready(self, request: Request) -> Response:
        name, version = _model_of(request)
        self._service.repository.find(name, version)
        ready = self._service.is_model_ready(name, version)
        return _json({"name": name, "ready": ready}, 200 if ready else 503)

    async def model_metadata(self, request: Request) -> Response:
        name, version = _model_of(request)
        parameters = self._service.repository.find(name, version).parameters
        return _json({**self._service.model_metadata(name, version),
                      **({"parameters": parameters} if parameters else {})})

    async def repository_index(self, request: Request) -> Response:
        parameters = await self._read_object(request)
        only_ready = parameters.get("ready", False)
        expect(isinstance(only_ready, bool), "ready", "true or false", repr(only_ready)[:32])
        return _json([each for each in self._service.repository.index()
                      if not only_ready or each["state"] == "READY"])

    async def load(self, request: Request) -> Response:
        parameters = await self._read_object(request)
        expect(not parameters.get("parameters"), "parameters", "none: a model is its file", "some")
        await self._service.repository.load(request.path_params["name"])
        return _json({})

    async def unload(self, request: Request) -> Response:
        await self._read_object(request)
        await self._service.repository.unload(request.path_params["name"])
        return _json({})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        return _json(describe())

    async def page(self, request: Request) -> Response:
        name, kind = _PAGE_FILES[request.url.path.lstrip("/")]
        return Response(_read_page(name), media_type=kind, headers=_PAGE_HEADERS)

    async def _read(self, request: Request) -> Body:
        said = request.headers.get("content-length", "")
        body = await self._bodies.read(request.stream(), int(said) if said.isdigit() else 0)
        request.scope[_IS_READ] = True
        return body

    async def _read_object(self, request: Request) -> Mapping[str, Any]:
        """The JSON object of a body, which may be empty."""
        body = await self._read(request)
        try:
            found = parse_json(body.content) if body.content else {}
        finally:
            body.let_go()
        expect(isinstance(found, dict), "body", "a JSON object", type(found).__name__)
        return dict(found)

    async def infer(self, request: Request) -> Response:
        with self._service.counting(*_model_of(request)) as asked:
            seconds = _seconds_of(request.headers.get(TIMEOUT))
            encoding = request.headers.get("content-encoding", "identity")
            expect(encoding == "identity", "Content-Encoding", "none", repr(encoding[:32]))
            body = await self._read(request)
            asked.began = time.perf_counter()
            # Until the very end of it, which may be after the client has gone.
            inference = asyncio.ensure_future(self._answer(asked, request.headers, body, seconds))
            inference.add_done_callback(lambda _: body.let_go())
            gone = asyncio.ensure_future(_wait_until_gone(request))
            try:
                await asyncio.wait([inference, gone], return_when=asyncio.FIRST_COMPLETED)
                if not inference.done():
                    raise CancelledError(
                        "request: expected a client that waits, got one that hung up")
                return inference.result()
            finally:
                for task in (inference, gone):
                    task.cancel()
                await asyncio.gather(inference, gone, return_exceptions=True)

    async def _answer(self, asked: Asked, headers: Headers, body: Body, seconds: float | None,
                      ) -> Response:
        content, length = body.content, headers.get(JSON_LENGTH)
        request = await _run(json_bytes(content, length), parse_request, content, length)
        if not request.comes_as_bytes(MAP):
            count = asked.model.count_values(request, MAP)
            expect(count <= MOST_IN_JSON, "outputs",
                   f"maps of at most {MOST_IN_JSON} values in JSON; ask for more as binary data",
                   count)
        answer = await self._service.infer(asked, request, seconds, headers)
        values = sum(math.prod(each.shape) for each in answer.outputs)
        found, json_length = await _run(values, answer_body, answer, request)
        if json_length is None:
            return Response(found, media_type="application/json")
        return Response(found, media_type="application/octet-stream",
                        headers={JSON_LENGTH: json_length})


async def _run(size: int, work: Callable[..., T], *arguments: Any) -> T:
    """What a function gives; a thread runs it where so many bytes or values take long."""
    return work(*arguments) if size <= _INLINE else await asyncio.to_thread(work, *arguments)


def _check_origin(request: Request) -> None:
    """Raise ForbiddenError for what the page of another site makes a browser send."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise ForbiddenError("Origin: expected this service's own page, got another")


def _end_unread(request: Request, answer: Response) -> Response:
    """The answer, after which the connection ends where the request's body was not read: else the
    server would go on reading, whatever its length."""
    headers = request.headers
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    if has_body and not request.scope.get(_IS_READ):
        answer.headers["Connection"] = "close"
    return answer


async def _wait_until_gone(request: Request) -> None:
    """Until the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _seconds_of(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    expect(0 < seconds < math.inf, TIMEOUT, "seconds above 0", repr(header[:32]))
    return seconds


def _model_of(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), status, headers,
                    "application/json")


def _failure(service: Service, error: Exception) -> Response:
    """What a client is told of an error."""
    if isinstance(error, ClientDisconnect):  # while its body was read
        error = CancelledError("request: expected a client that waits, got one that hung up")
    status = status_of(error)
    if status is INTERNAL:
        service.log_fault(error)
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = retry_after(error)
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return _json({"error": message_of(error)}, status.http, headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _end_unread(request, _json(
        {"error": f"{request.method} {request.url.path[:80]}: {error.detail}"},
        error.status_code, dict(error.headers or {})))


@cache
def _read_page(name: str) -> bytes:
    return (_PAGE / name).read_bytes()


