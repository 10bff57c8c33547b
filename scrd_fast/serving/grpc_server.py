"""The protocol over gRPC, on the event loop of the HTTP server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from scrd_fast.errors import OverloadedError, expect, fail
from scrd_fast.serving.bodies import Bodies
from scrd_fast.serving.grpc_messages import METHODS, PACKAGE, SERVICE, check_wire, message
from scrd_fast.serving.messages import (
    MOST_IN_JSON,
    InferAnswer,
    InferRequest,
    WantedOutput,
    check_parameters,
)
from scrd_fast.serving.service import Service
from scrd_fast.serving.status import INTERNAL, message_of, retry_after, status_of
from scrd_fast.serving.tensors import (
    BYTES,
    Tensor,
    check_shape,
    from_json,
    from_raw,
    to_raw,
)

_OPEN = ("ServerLive", "ServerReady")  # for whoever asks, without a token
# Where a tensor's elements are that does not come as raw bytes; FP16 has no such place.
_CONTENTS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", BYTES: "bytes_contents"}
# Messages that come at a time; how large one is is known only when it is there.
_MOST_ARRIVING = 16


def make_server(service: Service, bodies: Bodies) -> grpc.aio.Server:
    """A server without a port yet. bodies: reads requests, those over HTTP, too."""
    handlers, arriving = _Handlers(service), asyncio.Semaphore(_MOST_ARRIVING)
    server = grpc.aio.server(
        options=[("grpc.max_receive_message_length", bodies.most_bytes),
                 ("grpc.max_send_message_length", -1),
                 ("grpc.so_reuseport", 0)])  # a second service on this port is an error
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
        f"{PACKAGE}.{SERVICE}", {
            # To a client that is a call with one message as any other; here it is read only when
            # the token was seen and there is room.
            name: grpc.stream_unary_rpc_method_handler(
                _answering(service, bodies, arriving, name, getattr(handlers, name)),
                response_serializer=message(f"{name}Response").SerializeToString)
            for name in METHODS})])
    return server


def _answering(service: Service, bodies: Bodies, arriving: asyncio.Semaphore, name: str,
               handle: Callable[[Any, Any], Awaitable[Any]],
               ) -> Callable[[AsyncIterator[bytes], Any], Awaitable[Any]]:
    """A handler of a request's bytes, whose errors are told as gRPC tells them."""
    async def answer(messages: AsyncIterator[bytes], context: Any) -> Any:
        try:
            if name in _OPEN:
                return await handle(None, context)
            service.check_token(dict(context.invocation_metadata()).get("authorization"))
            body = await bodies.read(_first(messages, arriving))
            try:
                check_wire(body.content)
                try:
                    request = message(f"{name}Request").FromString(body.content)
                except DecodeError:
                    fail("request", f"a message {name}Request", f"{body.length} other bytes")
                return await handle(request, context)
            finally:
                body.let_go()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            status = status_of(error)
            if status is INTERNAL:
                service.log_fault(error)
            trailing = (("retry-after", retry_after(error)),) if isinstance(
                error, OverloadedError) else ()
            await context.abort(grpc.StatusCode[status.grpc], message_of(error), trailing)

    return answer


async def _first(messages: AsyncIterator[bytes], arriving: asyncio.Semaphore,
                 ) -> AsyncIterator[bytes]:
    """The one message of a request."""
    async with arriving:
        async for content in messages:
            yield content
            return


class _Handlers:
    """One for each method of the protocol, by its name."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._service.is_ready())

    async def ModelReady(self, request: Any, context: Any) -> Any:
        ready = self._service.is_model_ready(request.name, request.version)
        return message("ModelReadyResponse")(ready=ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(**self._service.server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        return message("ModelMetadataResponse")(
            **self._service.model_metadata(request.name, request.version))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        with self._service.counting(request.model_name, request.model_version) as asked:
            answer = await self._service.infer(asked, _parse(request), context.time_remaining(),
                                               dict(context.invocation_metadata()))
            return _response(answer)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        models = [each for each in self._service.repository.index()
                  if not request.ready or each["state"] == "READY"]
        return message("RepositoryIndexResponse")(models=models)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        expect(not request.parameters, "parameters", "none: a model is its file", "some")
        await self._service.repository.load(request.model_name)
        return message("RepositoryModelLoadResponse")()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self._service.repository.unload(request.model_name)
        return message("RepositoryModelUnloadResponse")()


def _parse(request: Any) -> InferRequest:
    raw = request.raw_input_contents
    expect(not raw or len(raw) == len(request.inputs), "raw_input_contents",
           f"one for each of {len(request.inputs)} inputs", len(raw))
    for where, described in (("request", request), *(
            (f"{kind}[{i}]", each) for kind in ("inputs", "outputs")
            for i, each in enumerate(getattr(request, kind)))):
        check_parameters(described.parameters, where)
    inputs = [
        _parse_input(f"inputs[{i}]", each, raw[i] if raw else None)
        for i, each in enumerate(request.inputs)]
    return InferRequest(
        request.id, tuple(inputs), tuple(WantedOutput(each.name) for each in request.outputs),
        {name: _value(value) for name, value in request.parameters.items()}, is_binary=True)


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)


def _parse_input(where: str, described: Any, raw: bytes | None) -> Tensor:
    shape = list(described.shape)
    if raw is not None:
        expect(not described.HasField("contents"), where, "either contents or raw_input_contents",
               "both")
        tensor = from_raw(where, described.datatype, shape, memoryview(raw))
    elif described.datatype == BYTES:
        count = check_shape(where, BYTES, shape)
        found = described.contents.bytes_contents
        expect(len(found) == count, f"{where}: bytes_contents", f"{count} elements", len(found))
        values = list(found)
        tensor = Tensor(where, BYTES, tuple(shape), values)
    else:
        check_shape(where, described.datatype, shape)
        if described.datatype not in _CONTENTS:
            fail(where, f"{described.datatype} as raw_input_contents", "contents")
        values = list(getattr(described.contents, _CONTENTS[described.datatype]))
        tensor = from_json(where, described.datatype, shape, values, most=MOST_IN_JSON)
    return tensor.renamed(described.name)


def _response(answer: InferAnswer) -> Any:
    outputs = [{"name": each.name, "datatype": each.datatype, "shape": each.shape}
               for each in answer.outputs]
    return message("ModelInferResponse")(
        model_name=answer.model_name, model_version=answer.model_version, id=answer.id,
        outputs=outputs, raw_output_contents=[to_raw(each) for each in answer.outputs])


def address_of(host: str, port: int) -> str:
    """Both as addresses write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def add_port(server: grpc.aio.Server, host: str, port: int, certificate: Sequence[bytes] | None,
             ) -> int:
    """Let a server listen; gives the port, which may have been 0. certificate: the key and the
    chain, in PEM. Raises InputError where it cannot listen there."""
    address = address_of(host, port)
    try:
        if certificate is None:
            return server.add_insecure_port(address)
        credentials = grpc.ssl_server_credentials([tuple(certificate)])
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        fail("--grpc-port", "a port that can be listened on", address)

