"""OpenVINO on the CPU: the default where no GPU is."""

from collections import Counter
from typing import Any

import onnx
import openvino  # before _openvino, which finds its library loaded by this

from scrd_fast.engine.backends.runner import Runner, native_runner
from scrd_fast.engine.graph import network_graph
from scrd_fast.engine.quantize import KINDS, Quantisation, quantise
from scrd_fast.errors import BackendUnavailable
from scrd_fast.spec import ScoringSpec

try:
    from scrd_fast import _openvino
except ImportError as error:
    raise BackendUnavailable(
        f"backend 'openvino': this installation of scrd_fast was built without OpenVINO or for"
        f" another release than {openvino.__version__} ({error}); install scrd_fast again with"
        " the openvino release that its pyproject.toml names"
    ) from error


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str,
    *, quantisation: Quantisation | None = None,
) -> Runner:
    """Compile the network in `proto` (see engine.graph.build_graph) for this CPU.

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

    return native_runner("openvino", openvino.__version__, native, spec, precision_used)


def precisions() -> list[str]:
    """The precisions that this CPU computes in natively, through OpenVINO, fastest first."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [p for p in ("int8", "bf16") if p.upper() in capabilities] + ["fp32"]
