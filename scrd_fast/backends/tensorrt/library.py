"""A flavour of TensorRT as this process uses it: its module, and what it says."""

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrd_fast.backends.tensorrt.flavour import Flavour
from scrd_fast.errors import BackendUnavailable

if TYPE_CHECKING:
    import torch


def derive(behaviour: type, base: type) -> Any:
    """A class of ours as one of TensorRT's interfaces, of which each flavour has its own."""

    def __init__(self: Any, *arguments: Any) -> None:
        base.__init__(self)  # type: ignore[misc]
        behaviour.__init__(self, *arguments)  # type: ignore[misc]

    return type(behaviour.__name__, (behaviour, base), {"__init__": __init__})


class _Log:
    """An ILogger that keeps warnings and errors, from whatever thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[bool, str]] = []

    def log(self, severity: Any, message: str) -> None:
        bad = severity.name in ("ERROR", "INTERNAL_ERROR")
        if bad or severity.name == "WARNING":
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


class Errors:
    """An IErrorRecorder: errors of one object of TensorRT, from whatever thread."""

    def __init__(self) -> None:
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


class Library:
    """flavour: what it is; trt: its module; log: the one that all of its objects are made with."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.trt: Any = flavour.load()
        trt = self.trt
        # One for the process, and never freed: TensorRT keeps a single pointer to a logger,
        # whichever came first. Builds at the same time in several threads may see each other's
        # messages.
        self.log: Any = derive(_Log, trt.ILogger)()

    @property
    def name(self) -> str:
        """With its version, for messages."""
        return f"{self.flavour.title} {self.trt.__version__}"

    @contextmanager
    def hear_errors(self, errors: Any = None) -> Iterator[Callable[[], str]]:
        """Yields a function that gives what was said since the block began, each text once.

        errors: of the objects that have a recorder, since those do not tell the log.
        """
        self.log.clear()
        if errors is not None:
            errors.clear()

        def why() -> str:
            recorded = [] if errors is None else errors.texts()
            texts = dict.fromkeys([*self.log.errors(), *recorded])
            return "; ".join(texts) or str(self.log.last())

        yield why

    def make(self, kind: Callable[..., Any], *arguments: Any) -> Any:
        """An object of TensorRT; raises BackendUnavailable where TensorRT refuses to make it, as
        with a driver that is too old for it."""
        self.log.clear()
        try:
            return kind(*arguments)
        except TypeError as error:  # what the bindings make of a null pointer
            raise BackendUnavailable(
                f"backend {self.flavour.backend!r}: {self.name} does not start:"
                f" {self.log.last()}; the driver may be too old for it") from error


@cache
def library(flavour: Flavour) -> Library:
    """The library of a flavour, loaded when it is first asked for."""
    return Library(flavour)


def cache_file(library: Library, device: "torch.device", kind: str) -> Path | None:
    """The user's file for what is kept between processes, for this library and kind of GPU; in a
    folder of the user's alone. None, with a warning, where there is none."""
    import torch

    try:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = caches / "scrd_fast" / "tensorrt"
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        warnings.warn(f"{library.flavour.title}'s {kind} cache is not kept: {error}", stacklevel=2)
        return None
    gpu = "".join(c if c.isalnum() else "-" for c in torch.cuda.get_device_name(device))
    return root / f"{library.flavour.backend}-{library.trt.__version__}-{gpu}.{kind}"
