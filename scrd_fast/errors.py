"""The error tree. Every error this package raises on purpose is a `ScrdError`.

A message names the argument, what was expected and what came:
`student[1]: expected (N, 512, 32, 32), got (N, 512, 31, 32)`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class ScrdError(Exception):
    """Base of all errors raised on purpose; the command line prints it as one line."""


class InputError(ScrdError, ValueError):
    """An argument has a wrong type, shape, dtype or value."""


class NotFiniteError(InputError):
    """NaN or infinity among values that a result is computed from."""


class ClosedError(ScrdError):
    """Something was used after it was closed."""


class OverloadedError(ScrdError):
    """More work waits than was allowed to; try again later."""


class CancelledError(ScrdError):
    """Work was dropped because nobody wanted it any more."""


class DataError(ScrdError):
    """An image file or folder cannot be read as images."""


class CheckpointError(ScrdError):
    """A checkpoint is missing, truncated, foreign or refused."""


class EngineFileError(ScrdError):
    """An engine file (.scrd) is missing, damaged, or of a version this package does not know."""


class EngineBuildError(ScrdError):
    """A compiler refused a network; the message says which part, and why."""


class BackendUnavailable(ScrdError):
    """A backend or precision was asked for that this machine cannot run."""


class MissingExtra(BackendUnavailable, ImportError):
    """What was asked for needs packages that an extra of this one brings."""


class DeviceMemoryError(ScrdError):
    """A GPU's memory is too small for what was asked of it; what was loaded stays usable."""


class DeviceFaultError(ScrdError):
    """A GPU stopped in the middle of its work: what this process had loaded on it is lost."""


class FidelityError(ScrdError):
    """An engine does not reproduce the reference scores within the limits."""


class OutputError(ScrdError):
    """A result could not be written (full disk, unwritable folder, existing file)."""


# What trains and builds comes with an extra: who only scores needs none of it.
TRAIN_PACKAGES = ("torch", "onnx", "scipy")
_EXTRAS = {
    "train": ("what trains and builds comes", TRAIN_PACKAGES),
    "serve": ("what serves comes", ("starlette", "uvicorn", "httptools", "grpc", "google",
                                    "prometheus_client")),
    "dicom": ("what receives and sends DICOM comes", ("pynetdicom", "pydicom", "highdicom")),
    "archive": ("what scores archives comes", ("pyarrow", "fsspec")),
    "ray": ("what works on Ray comes", ("ray",)),
    "tracing": ("what traces requests comes", ("opentelemetry",)),
}
PYTORCH_MISSING = "PyTorch is not installed; pip install 'scrd-fast[train]'"


@contextmanager
def explain_missing(what: str, extra: str = "train") -> Iterator[None]:
    """Raise MissingExtra where a package of an extra is missing inside: it says what needs the
    package and which extra brings it."""
    part, packages = _EXTRAS[extra]
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtra(f"{what}: expected {package}, got none; {part} with:"
                           f" pip install 'scrd-fast[{extra}]'") from error


def fail(argument: str, expected: object, got: object) -> NoReturn:
    """Raise `InputError("argument: expected ..., got ...")`."""
    raise InputError(f"{argument}: expected {expected}, got {got}")


def expect(condition: bool, argument: str, expected: object, got: object) -> None:
    """Raise `InputError("argument: expected ..., got ...")` unless `condition` holds."""
    if not condition:
        fail(argument, expected, got)
