"""What all runners share: precisions, modes, the choice of a backend, and the native scorer."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import onnx

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable, expect
from scrd_fast.ops.anomaly_map import native_tail
from scrd_fast.spec import ScoringSpec

PRECISIONS = ("fp32", "bf16")
BACKENDS = ("openvino", "torch_eager")
MODES = ("latency", "throughput")


@dataclass(frozen=True)
class Runner:
    """A compiled network: normalised pixels in, distances and scale weights out.

    native: what the C++ scorer drives; precision_used: the precision each layer group really
    computes in.
    """

    name: str
    version: str
    native: _native.Runner
    precision_used: Callable[[], dict[str, Any]]

    def scorer(self, spec: ScoringSpec) -> _native.Scorer:
        """The scorer that owns this runner from now on; close it before the interpreter ends."""
        return _native.Scorer(self.native, spec.input_size, spec.mean, spec.std,
                              native_tail(spec), spec.reduction == "max")


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
    missing = _openvino_missing()
    if backend == "auto":
        return "torch_eager" if missing else "openvino"
    if backend == "openvino" and missing:
        raise BackendUnavailable(f"backend 'openvino': {missing}, or choose backend='torch_eager'")
    return backend


def _openvino_missing() -> str | None:
    """Why OpenVINO cannot be used, and what to do; None where it can."""
    if not find_spec("openvino"):
        return "the openvino package is not installed; pip install openvino"
    if not find_spec("scrd_fast._openvino"):
        return ("scrd_fast was installed where OpenVINO was not, without the runner for it;"
                " install scrd_fast again")
    return None


def native_precisions(backend: str) -> list[str]:
    """The precisions that `backend` computes in natively on this machine, slowest first."""
    if backend == "openvino":
        from scrd_fast.engine.backends.openvino import precisions
    else:
        from scrd_fast.engine.backends.torch_eager import precisions
    return precisions()


def make_runner(
    backend: str, proto: onnx.ModelProto, spec: ScoringSpec, precision: str,
    buckets: tuple[int, ...], mode: str = "latency",
) -> Runner:
    """Compile the network in `proto` for a backend; raises BackendUnavailable.

    proto: what engine.graph.build_graph gives; buckets: batch sizes rising from 1; mode:
    "latency" (one stream, all cores) or "throughput" (several streams, where the backend has them).
    """
    check_precision(backend, precision)
    expect(mode in MODES, "mode", f"one of {MODES}", repr(mode))
    if backend == "openvino":
        from scrd_fast.engine.backends.openvino import make
    else:
        from scrd_fast.engine.backends.torch_eager import make
    return make(proto, spec, precision, buckets, mode)
