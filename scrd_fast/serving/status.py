"""What went wrong with a request, as HTTP and gRPC say it."""

import math
from dataclasses import dataclass

from scrd_fast.errors import (
    CancelledError,
    ClosedError,
    InputError,
    OverloadedError,
    ScrdError,
)
from scrd_fast.serving.messages import TooLargeError
from scrd_fast.serving.model import BusyError, DeadlineError
from scrd_fast.serving.repository import ForbiddenError, LoadError, NotFoundError


class UnauthenticatedError(ScrdError):
    """A request without the token that the service asks for."""


class SlowRequestError(ScrdError):
    """A request that did not come in time."""


@dataclass(frozen=True)
class Status:
    """http: the status code; grpc: the name of gRPC's."""

    http: int
    grpc: str


# The first that fits. What is not here is no fault of the client's.
_STATUS: tuple[tuple[type[BaseException], Status], ...] = (
    (OverloadedError, Status(429, "RESOURCE_EXHAUSTED")),
    (DeadlineError, Status(504, "DEADLINE_EXCEEDED")),
    (SlowRequestError, Status(408, "DEADLINE_EXCEEDED")),
    (NotFoundError, Status(404, "NOT_FOUND")),
    (UnauthenticatedError, Status(401, "UNAUTHENTICATED")),
    (ForbiddenError, Status(403, "PERMISSION_DENIED")),
    (LoadError, Status(500, "FAILED_PRECONDITION")),
    (TooLargeError, Status(413, "RESOURCE_EXHAUSTED")),
    (InputError, Status(400, "INVALID_ARGUMENT")),
    (CancelledError, Status(499, "CANCELLED")),
    (ClosedError, Status(503, "UNAVAILABLE")),
)
INTERNAL = Status(500, "INTERNAL")


def status_of(error: BaseException) -> Status:
    """How an error is told."""
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return INTERNAL


def retry_after(error: OverloadedError) -> str:
    """Whole seconds after which a client may try again, 1 at least."""
    seconds = error.retry_after if isinstance(error, BusyError) else 0
    return str(max(1, math.ceil(seconds)))


def message_of(error: BaseException) -> str:
    """What a client is told. Of faults that are not its own nothing but their kind: they may name
    places on this machine, or quote what a file says of a patient."""
    if status_of(error) is INTERNAL:
        return f"internal: {type(error).__name__}; the service's log says more"
    return str(error)
