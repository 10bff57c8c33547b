"""Plain PyTorch: runs the portable graph node by node, where no other runtime is installed."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, native_runner, one_stream
from scrd_fast.errors import PYTORCH_MISSING
from scrd_fast.machine import pytorch_has_bf16
from scrd_fast.spec import ScoringSpec

if TYPE_CHECKING:
    from scrd_fast.backends.torch_network import TorchNetwork


class _TorchEager(Backend):
    name = "torch_eager"

    def missing(self) -> str | None:
        return None if find_spec("torch") else PYTORCH_MISSING

    def precisions(self) -> list[str]:
        return ["bf16", "fp32"] if pytorch_has_bf16() else ["fp32"]

    def compile(self, request: CompileRequest) -> Runner:
        """PyTorch shares out the cores itself, so it has one stream."""
        from scrd_fast.backends.torch_network import TorchNetwork
        from scrd_fast.graph.portable import network_graph
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec = request.spec
        with own_state():
            network = TorchNetwork(network_graph(request.source.proto, spec), request.precision)
        return network_runner(self.name, network, spec, request.buckets)


def network_runner(name: str, network: "TorchNetwork", spec: ScoringSpec,
                   buckets: Sequence[int]) -> Runner:
    """The runner of a network on the CPU that gives three distances and scale weights; name: of its
    backend."""
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from scrd_fast import _native

    def run(pixels: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """(N, 3, S, S) -> three distances (N, h_k, w_k) and scale weights (N, 3)."""
        return [t.contiguous().numpy() for t in network.run(torch.from_numpy(pixels))]

    native = _native.PythonRunner(run, spec.input_size, list(buckets))
    return native_runner(name, str(torch.__version__), native, spec, network.precision_used)


BACKEND = _TorchEager()
