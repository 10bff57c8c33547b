"""What all runners share: the protocol, the precisions, and the choice of a backend."""

from importlib.util import find_spec
from typing import Any, Protocol

import onnx
from torch import Tensor

from scrd_fast.errors import BackendUnavailable, expect

PRECISIONS = ("fp32", "bf16")
BACKENDS = ("openvino", "torch_eager")


class Runner(Protocol):
    """A compiled network: normalised pixels in, distances and scale weights out."""

    name: str
    version: str

    def run(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """(N, 3, S, S) float32 -> three distances (N, h_k, w_k) and scale weights (N, 3)."""

    def precision_used(self) -> dict[str, Any]:
        """The precision each layer group really computes in."""


def check_precision(backend: str, precision: str) -> None:
    """Raise unless `precision` is "auto" or one that the backend offers on this machine."""
    choices = ("auto", *PRECISIONS)
    expect(precision in choices, "precision", f"one of {choices}", repr(precision))
    offered = native_precisions(backend)
    if precision != "auto" and precision not in offered:
        raise BackendUnavailable(
            f"precision {precision!r}: this machine's CPU does not compute in it natively through"
            f" {backend}; it offers {offered}"
        )


def choose_backend(backend: str, device: str | None) -> str:
    """The backend to use for "auto", or the forced one; raises where it cannot run here."""
    if device not in (None, "cpu"):
        raise BackendUnavailable(f"device {device!r}: expected 'cpu'; no GPU backend is built yet")
    expect(backend in ("auto", *BACKENDS), "backend", f"one of {('auto', *BACKENDS)}",
           repr(backend))
    if backend == "auto":
        return "openvino" if find_spec("openvino") else "torch_eager"
    if backend == "openvino" and not find_spec("openvino"):
        raise BackendUnavailable(
            "backend 'openvino': the openvino package is not installed; pip install openvino, or"
            " choose backend='torch_eager'"
        )
    return backend


def native_precisions(backend: str) -> list[str]:
    """The precisions that `backend` computes in natively on this machine, slowest first."""
    if backend == "openvino":
        from scrd_fast.engine.backends.openvino import precisions
    else:
        from scrd_fast.engine.backends.torch_eager import precisions
    return precisions()


def make_runner(backend: str, network: onnx.ModelProto, precision: str) -> Runner:
    """Compile `network` for a backend; raises BackendUnavailable where it cannot run here."""
    check_precision(backend, precision)
    if backend == "openvino":
        from scrd_fast.engine.backends.openvino import OpenVinoRunner

        return OpenVinoRunner(network, precision)
    from scrd_fast.engine.backends.torch_eager import TorchRunner

    return TorchRunner(network, precision)
