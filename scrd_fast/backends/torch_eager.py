"""Plain PyTorch: runs the portable graph node by node, where no other runtime is installed."""

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from scrd_fast import _native
from scrd_fast.backends.runner import Runner, bf16_is_capped, native_runner, one_stream
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.graph.portable import network_graph
from scrd_fast.spec import ScoringSpec


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str
) -> Runner:
    """The network as a runner; PyTorch shares out the cores itself, so it has one stream."""
    one_stream("torch_eager", mode)
    network = TorchNetwork(network_graph(proto, spec), precision)

    def run(pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """(N, 3, S, S) -> three distances (N, h_k, w_k) and scale weights (N, 3)."""
        return [t.contiguous().numpy() for t in network.run(torch.from_numpy(pixels))]

    native = _native.PythonRunner(run, spec.input_size, list(buckets))
    return native_runner("torch_eager", str(torch.__version__), native, spec,
                         network.precision_used)


def precisions() -> list[str]:
    """The precisions that this CPU computes in natively, through PyTorch, fastest first."""
    # torch.cpu.get_capabilities came after 2.11; without it only fp32 is offered.
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    bf16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return ["bf16", "fp32"] if bf16 and not bf16_is_capped() else ["fp32"]
