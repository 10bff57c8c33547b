"""PyTorch and Triton on an NVIDIA GPU: the network in cuDNN's convolutions, the rest in ours."""

import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, one_stream
from scrd_fast.errors import PYTORCH_MISSING
from scrd_fast.spec import ScoringSpec

if TYPE_CHECKING:
    import onnx
    import torch

    from scrd_fast.backends.torch_network import TorchNetwork


class _TorchCuda(Backend):
    name = "torch_cuda"
    on_gpu = True

    def missing(self) -> str | None:
        return None if find_spec("torch") else PYTORCH_MISSING

    def precisions(self) -> list[str]:
        import torch

        # bf16 is as fast as fp16, and coarser.
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ["fp16", "bf16", "fp32"] if bf16 else ["fp16", "fp32"]

    def compile(self, request: CompileRequest) -> Runner:
        """The network is captured, a CUDA graph per bucket."""
        import torch
        import triton

        from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner, no_room, with_tail
        from scrd_fast.graph.portable import network_graph
        from scrd_fast.graph.tensors import DTYPES
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec, precision, device = request.spec, request.precision, request.device
        assert device is not None
        with own_state():  # its weights and buffers outlive the caller's inference mode
            graph = network_graph(request.source.proto, spec, features=True)
            try:
                network = _network(graph, spec, precision, device)
            except torch.cuda.OutOfMemoryError as error:
                raise no_room(device) from error
            captured = CapturedNetwork(with_tail(network.run, spec, device), spec,
                                       request.buckets, device, DTYPES[precision],
                                       channels_last=True)
        version = f"{torch.__version__}, Triton {triton.__version__}"
        return cuda_runner(self.name, version, captured, network.precision_used)


def _network(
    graph: "onnx.ModelProto", spec: ScoringSpec, precision: str, device: "torch.device"
) -> "TorchNetwork":
    """The network with bias, residual sum and ReLU inside cuDNN's convolutions, where it has such
    ones: in half precision."""
    import torch

    from scrd_fast.backends.torch_network import TorchNetwork

    if precision != "fp32":
        fused = TorchNetwork(graph, precision, device=device, fuse=True)
        if (reason := _unusable(fused, spec.input_size, device)) is None:
            return fused
        warnings.warn(f"cuDNN {torch.backends.cudnn.version()} {reason}; the network runs with"
                      " plain convolutions, which are slower", stacklevel=2)
    return TorchNetwork(graph, precision, device=device)


def _unusable(fused: "TorchNetwork", side: int, device: "torch.device") -> str | None:
    """Why a fused network cannot be taken, or None where it can."""
    import torch

    from scrd_fast.graph.tensors import DTYPES

    pixels = torch.full((1, 3, side, side), float("nan"), dtype=DTYPES[fused.precision],
                        device=device)
    try:
        outputs = fused.run(pixels)
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return f"does not run its fused convolutions in {fused.precision} ({error})"
    # Some releases have a ReLU that makes 0 of NaN: an overflow would become a score.
    if any(bool(output.isfinite().all()) for output in outputs):
        return f"loses what is not finite in its fused convolutions in {fused.precision}"
    return None


BACKEND = _TorchCuda()
