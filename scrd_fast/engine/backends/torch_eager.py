"""Plain PyTorch: runs the portable graph node by node, where no other runtime is installed."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor

from scrd_fast import _native
from scrd_fast.engine.backends.runner import Runner
from scrd_fast.engine.graph import NETWORK_INPUT, NETWORK_OUTPUTS, network_graph
from scrd_fast.errors import BackendUnavailable
from scrd_fast.spec import ScoringSpec

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
Attributes = dict[str, Any]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x, weight, bias, stride=a.get("strides", [1, 1]),
                    padding=a.get("pads", [0, 0])[:2])


def _max_pool(a: Attributes, x: Tensor) -> Tensor:
    return F.max_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2])


# Every operator that engine.graph writes into the network and its distances.
_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv,
    "MaxPool": _max_pool,
    "Relu": lambda a, x: torch.relu(x),
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Max": lambda a, x, y: torch.maximum(x, y),
    "Sqrt": lambda a, x: torch.sqrt(x),
    "Softmax": lambda a, x: torch.softmax(x, a["axis"]),
    "Concat": lambda a, *xs: torch.cat(xs, a["axis"]),
    "DepthToSpace": lambda a, x: F.pixel_shuffle(x, a["blocksize"]),
    "ReduceSum": lambda a, x, axes: x.sum(axes.tolist(), keepdim=bool(a["keepdims"])),
    "ReduceMax": lambda a, x, axes: x.amax(axes.tolist(), keepdim=bool(a["keepdims"])),
}


class TorchRunner:
    """Interprets the network graph; "network/" nodes in the precision, "tail/" in float32."""

    def __init__(self, network: onnx.ModelProto, precision: str) -> None:
        unknown = sorted({node.op_type for node in network.graph.node} - set(_OPERATORS))
        if unknown:
            raise KeyError(f"operators {unknown} are not known to this backend")
        self.precision = precision
        dtype = _DTYPES[precision]
        self._nodes = [
            (node.op_type, list(node.input), node.output[0],
             {a.name: helper.get_attribute_value(a) for a in node.attribute},
             dtype if node.name.startswith("network/") else torch.float32, node.name)
            for node in network.graph.node
        ]
        self._weights = {}
        networks = {i for n in self._nodes if n[4] == dtype for i in n[1]}
        for tensor in network.graph.initializer:
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            if value.is_floating_point():
                value = value.to(dtype if tensor.name in networks else torch.float32)
            if value.ndim == 4:
                value = value.contiguous(memory_format=torch.channels_last)
            self._weights[tensor.name] = value

    def values(self, pixels: Tensor) -> Iterator[tuple[str, str, Tensor]]:
        """Run the graph and yield (node name, output name, value) after every node."""
        x = pixels.contiguous(memory_format=torch.channels_last)
        alive: dict[str, Tensor] = {NETWORK_INPUT: x}
        last_use = {name: i for i, node in enumerate(self._nodes) for name in node[1]}
        for i, (op, inputs, output, attributes, dtype, name) in enumerate(self._nodes):
            operands = [self._weights[n] if n in self._weights else alive[n] for n in inputs]
            operands = [o.to(dtype) if o.is_floating_point() else o for o in operands]
            alive[output] = _OPERATORS[op](attributes, *operands)
            yield name, output, alive[output]
            for n in inputs:
                if last_use[n] == i:
                    alive.pop(n, None)

    @torch.no_grad()
    def run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """(N, 3, S, S) -> three distances (N, h_k, w_k) and scale weights (N, 3)."""
        kept = {o: v for _, o, v in self.values(torch.from_numpy(pixels)) if o in NETWORK_OUTPUTS}
        return [kept[name].contiguous().numpy() for name in NETWORK_OUTPUTS]

    def precision_used(self) -> dict[str, Any]:
        names = {torch.float32: "f32", torch.bfloat16: "bf16"}
        counts: dict[str, dict[str, int]] = {"convolutions": {}, "tail": {}}
        for op, _, _, _, dtype, name in self._nodes:
            group = "convolutions" if op == "Conv" else "tail"
            if op == "Conv" or name.startswith("tail/"):
                counts[group][names[dtype]] = counts[group].get(names[dtype], 0) + 1
        return counts


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str
) -> Runner:
    """The interpreter as a runner; PyTorch shares out the cores itself, so it has one stream."""
    if mode != "latency":
        raise BackendUnavailable(
            f"mode {mode!r}: expected 'latency' with backend 'torch_eager', which has one stream"
        )
    torch_runner = TorchRunner(network_graph(proto, spec), precision)
    return Runner("torch_eager", str(torch.__version__),
                  _native.PythonRunner(torch_runner.run, spec.input_size, list(buckets)),
                  torch_runner.precision_used)


@torch.no_grad()
def first_nonfinite(proto: onnx.ModelProto, spec: ScoringSpec, pixels: Tensor) -> str | None:
    """The name of the first node whose output is not finite in float32, or None."""
    for name, _, value in TorchRunner(network_graph(proto, spec), "fp32").values(pixels):
        if not bool(torch.isfinite(value).all()):
            return name
    return None


def precisions() -> list[str]:
    """The precisions that this CPU computes in natively, through PyTorch."""
    # torch.cpu.get_capabilities came after 2.11; without it only fp32 is offered.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return [p for p in _DTYPES if p == "fp32" or native]
