"""OpenVINO on the CPU: the default where no GPU is."""

import io
from collections import Counter
from threading import Lock
from typing import Any

import numpy as np
import onnx
import openvino
import torch
from torch import Tensor

from scrd_fast.engine.graph import NETWORK_OUTPUTS

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoRunner:
    """The network compiled for one request at a time over all cores."""

    name = "openvino"

    def __init__(self, network: onnx.ModelProto, precision: str) -> None:
        core = openvino.Core()
        model = core.read_model(io.BytesIO(network.SerializeToString()))
        self._compiled = core.compile_model(
            model, "CPU",
            {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": _HINTS[precision]},
        )
        self._request = self._compiled.create_infer_request()
        self._lock = Lock()
        self.version = openvino.__version__

    def run(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """(N, 3, S, S) float32 -> three distances (N, h_k, w_k) and scale weights (N, 3)."""
        # One request, whose output memory the next call overwrites: copy before letting go.
        with self._lock:
            outputs = self._request.infer([np.ascontiguousarray(pixels.numpy())])
            *distances, weights = (torch.from_numpy(outputs[n].copy()) for n in NETWORK_OUTPUTS)
        return distances, weights

    def precision_used(self) -> dict[str, Any]:
        """What the compiled graph computes in, per layer group: a runtime may ignore a hint."""
        groups: dict[str, Counter[str]] = {"convolutions": Counter(), "tail": Counter()}
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (str(info[k].astype(str)) for k in ("layerType", "runtimePrecision"))
            if kind == "Convolution":
                groups["convolutions"][precision] += 1
            elif node.get_friendly_name().startswith(("tail/", "distance")) and kind != "Reorder":
                groups["tail"][precision] += 1
        return {group: dict(counts) for group, counts in groups.items()}


def precisions() -> list[str]:
    """The precisions that this CPU computes in natively, through OpenVINO."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [p for p in _HINTS if p == "fp32" or p.upper() in capabilities]
