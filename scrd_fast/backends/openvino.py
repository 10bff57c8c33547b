"""OpenVINO on the CPU: the default where no GPU is."""

import ctypes
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from scrd_fast.backends.runner import Runner, bf16_is_capped, native_runner
from scrd_fast.errors import BackendUnavailable
from scrd_fast.graph.portable import network_graph
from scrd_fast.graph.quantize import KINDS, Quantisation, quantise
from scrd_fast.spec import ScoringSpec


def _load_library() -> None:
    """Load OpenVINO's library, which `_openvino` needs, from its wheel.

    Importing the wheel's Python package instead would send an event to its makers and write an
    identifier into the user's home directory, or fail where there is none.
    """
    spec = find_spec("openvino")
    assert spec is not None, "openvino_missing() told"
    for folder in spec.submodule_search_locations or ():
        for library in Path(folder).glob("libs/libopenvino.so*"):
            ctypes.CDLL(str(library))


try:
    _load_library()
    from scrd_fast import _openvino
except (ImportError, OSError) as error:
    raise BackendUnavailable(
        f"backend 'openvino': this installation of scrd_fast was built without OpenVINO or for"
        f" another release than {version('openvino')} ({error}); install scrd_fast again with"
        " the openvino release that its pyproject.toml names"
    ) from error


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str,
    *, quantisation: Quantisation | None = None,
) -> Runner:
    """Compile the network in `proto` (see graph.portable.build_graph) for this CPU.

    fp32: up to the distances. bf16: up to the features, which are handed out in bf16 and never
    copied; computing float32 distances of them in the graph takes 2 % more (docs/performance.md).
    int8: as bf16 (fp32 where the CPU has none), with the network's convolutions quantised.
    In throughput mode the streams take single images: batches would keep streams waiting.
    """
    bf16 = precision != "fp32" and "bf16" in precisions()
    network = network_graph(proto, spec, features=bf16)
    if precision in KINDS:
        assert quantisation is not None
        network = quantise(network, precision, quantisation, base="fp32")
    throughput = mode == "throughput"
    native = _openvino.OpenVinoRunner(network.SerializeToString(), "bf16" if bf16 else "f32",
                                      [1] if throughput else list(buckets), throughput)

    def precision_used() -> dict[str, Any]:
        groups: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
        for name, kind, computed in native.layers():
            if kind == "Convolution":
                groups["convolutions"][computed] += 1
            elif name.startswith(("tail/", "distance")) and kind != "Reorder":
                groups["tail"][computed] += 1
        return {group: dict(counts) for group, counts in groups.items()}

    return native_runner("openvino", _openvino.version(), native, spec, precision_used)


def precisions() -> list[str]:
    """The precisions that this CPU computes in natively, through OpenVINO, fastest first."""
    offered = set(_openvino.capabilities()) - ({"BF16"} if bf16_is_capped() else set())
    return [p for p in ("int8", "bf16") if p.upper() in offered] + ["fp32"]
