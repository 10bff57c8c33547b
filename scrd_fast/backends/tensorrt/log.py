"""What TensorRT says, for the exceptions that follow."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tensorrt as trt

from scrd_fast.errors import BackendUnavailable


class Log(trt.ILogger):
    """Keeps warnings and errors, from whatever thread."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.Lock()
        self._kept: list[tuple[bool, str]] = []

    def log(self, severity: Any, message: str) -> None:
        bad = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
        if bad or severity == trt.ILogger.WARNING:
            with self._lock:
                self._kept.append((bad, message))

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def errors(self) -> list[str]:
        with self._lock:
            return [text for bad, text in self._kept if bad]

    def last(self) -> str:
        """The last error or warning."""
        with self._lock:
            return self._kept[-1][1] if self._kept else "no reason was given"


class Errors(trt.IErrorRecorder):
    """Errors of one object of TensorRT, from whatever thread."""

    def __init__(self) -> None:
        trt.IErrorRecorder.__init__(self)
        self._lock = threading.Lock()
        self._errors: list[tuple[Any, str]] = []

    def num_errors(self) -> int:
        return len(self._errors)

    def get_error_code(self, index: int) -> Any:
        return self._errors[index][0]

    def get_error_desc(self, index: int) -> str:
        return self._errors[index][1]

    def has_overflowed(self) -> bool:
        return False

    def clear(self) -> None:
        with self._lock:
            self._errors.clear()

    def report_error(self, code: Any, text: str) -> bool:
        with self._lock:
            self._errors.append((code, text))
        return True

    def texts(self) -> list[str]:
        with self._lock:
            return [text for _, text in self._errors]


# One for the process, and never freed: TensorRT keeps a single pointer to a logger, whichever came
# first. Builds at the same time in several threads may see each other's messages.
LOG = Log()


@contextmanager
def hear_errors(errors: Errors | None = None) -> Iterator[Callable[[], str]]:
    """Yields a function that gives what was said since the block began, each text once.

    errors: of the objects that have a recorder, since those do not tell the log.
    """
    LOG.clear()
    if errors is not None:
        errors.clear()

    def why() -> str:
        texts = dict.fromkeys([*LOG.errors(), *([] if errors is None else errors.texts())])
        return "; ".join(texts) or LOG.last()

    yield why


def make_object(kind: Callable[..., Any], *arguments: Any) -> Any:
    """An object of TensorRT; raises BackendUnavailable where TensorRT refuses to make it, as with a
    driver that is too old for it."""
    LOG.clear()
    try:
        return kind(*arguments)
    except TypeError as error:  # what the bindings make of a null pointer
        raise BackendUnavailable(
            f"backend 'tensorrt': TensorRT {trt.__version__} does not start: {LOG.last()}; the"
            " driver may be too old for it"
        ) from error
