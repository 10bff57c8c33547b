"""What HTTP and gRPC have in common: who may ask, which model is meant, and what is counted."""

import asyncio
import hmac
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from scrd_fast import __version__
from scrd_fast.errors import ScrdError, expect
from scrd_fast.serving.messages import InferAnswer, InferRequest
from scrd_fast.serving.metrics import Metrics
from scrd_fast.serving.model import Output, ServedModel
from scrd_fast.serving.repository import NotFoundError, Repository
from scrd_fast.serving.status import INTERNAL, UnauthenticatedError, status_of
from scrd_fast.serving.tracing import NoTrace, Trace

log = logging.getLogger("scrd_fast.serving")
_BEARER = "bearer "


@dataclass
class Asked:
    """A request for a model. began: when it had been read; images: that were scored for it."""

    model: ServedModel
    began: float = field(default_factory=time.perf_counter)
    images: int = 0


class Service:
    """The models, and what is known of their requests."""

    def __init__(self, repository: Repository, token: str | None = None,
                 trace: Trace | None = None) -> None:
        """token: that every request must bear but those for health."""
        if token is not None:
            expect(token.isascii() and token.isprintable() and len(token) >= 16, "token",
                   "16 printable ASCII characters at least", f"{len(token)} of them")
        self.repository = repository
        self.metrics = Metrics(repository)
        self.is_stopping = False
        self.trace = trace or NoTrace()
        self._token = token

    def check_token(self, authorization: str | None) -> None:
        """Raise UnauthenticatedError unless a header says "Bearer" and the token."""
        if self._token is None:
            return
        said = authorization or ""
        is_bearer = said[: len(_BEARER)].lower() == _BEARER
        given = said[len(_BEARER):].encode("utf-8", "replace") if is_bearer else b""
        if not hmac.compare_digest(given, self._token.encode()):
            raise UnauthenticatedError("authorization: expected the service's bearer token, got"
                                       f" {'another' if given else 'none'}")

    def is_ready(self) -> bool:
        """Whether all models answer requests."""
        return not self.is_stopping and self.repository.is_ready()

    def is_model_ready(self, name: str, version: str) -> bool:
        """Whether a model answers requests; False of one that is not known."""
        try:
            model = self.repository.find(name, version)
        except NotFoundError:
            return False
        return not self.is_stopping and model.fault is None

    def server_metadata(self) -> dict[str, Any]:
        """As the protocol has it."""
        extensions = ["binary_tensor_data"]
        if self.repository.may_load:
            extensions.append("model_repository")
        return {"name": "scrd_fast", "version": __version__, "extensions": extensions}

    def model_metadata(self, name: str, version: str) -> dict[str, Any]:
        """As the protocol has it."""
        model = self.repository.find(name, version)
        return {"name": name, "versions": self.repository.versions(name),
                "platform": model.platform, "inputs": _described(model.inputs),
                "outputs": _described(model.outputs)}

    @contextmanager
    def counting(self, name: str, version: str) -> Iterator["Asked"]:
        """Count what becomes of a request for a model; raises NotFoundError."""
        asked = Asked(self.repository.find(name, version))
        status = INTERNAL.grpc
        try:
            yield asked
            status = "OK"
        except asyncio.CancelledError:
            status = "CANCELLED"
            raise
        except Exception as error:
            status = status_of(error).grpc
            raise
        finally:
            self.metrics.count(asked.model.name, asked.model.version, status,
                               time.perf_counter() - asked.began, asked.images)

    async def infer(self, asked: "Asked", request: InferRequest, seconds: float | None,
                    headers: Mapping[str, str]) -> InferAnswer:
        """What a model says; see ServedModel.infer for what it raises. seconds: for which somebody
        waits, by the transport; the request may say less. headers: may name a trace."""
        limits = [each for each in (seconds, request.timeout) if each is not None]
        model = asked.model
        with self.trace.span("infer", headers, {
                "scrd.model": model.name, "scrd.version": model.version,
                "scrd.images": sum(each.shape[0] for each in request.inputs if each.shape)}):
            answer = await model.infer(request, min(limits, default=None))
        asked.images = answer.images
        return answer

    def log_fault(self, error: BaseException) -> None:
        """Write down an error that no client is to blame for: its kind and place, and what it says
        only where it is one of ours, which quote no patient."""
        place, at = error.__traceback__, "an unknown place"
        while place is not None:
            at = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}"
            place = place.tb_next
        said = f": {error}" if isinstance(error, ScrdError) else ""
        log.error("%s at %s%s", type(error).__name__, at, said)


def _described(outputs: Sequence[Output]) -> list[dict[str, Any]]:
    return [{"name": each.name, "datatype": each.datatype, "shape": list(each.shape)}
            for each in outputs]
