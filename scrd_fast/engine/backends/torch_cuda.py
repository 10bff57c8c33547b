"""PyTorch and Triton on an NVIDIA GPU: the network in cuDNN's convolutions, the rest in ours."""

import onnx
import torch
import triton

from scrd_fast.engine.backends.cuda import CapturedNetwork, CudaScorer, no_room
from scrd_fast.engine.backends.runner import Runner, one_stream
from scrd_fast.engine.backends.torch_network import DTYPES, TorchNetwork
from scrd_fast.engine.graph import network_graph
from scrd_fast.spec import ScoringSpec


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str,
    device: torch.device,
) -> Runner:
    """Capture the network in `proto` (see engine.graph.build_graph) on a GPU."""
    one_stream("torch_cuda", mode)
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    # cuDNN fuses what follows a convolution in half precision.
    try:
        network = TorchNetwork(network_graph(proto, spec, features=True), precision,
                               device=device, fuse=precision != "fp32")
    except torch.cuda.OutOfMemoryError as error:
        raise no_room(device) from error
    captured = CapturedNetwork(network.run, spec, DTYPES[precision], buckets, device)
    version = f"{torch.__version__}, Triton {triton.__version__}"
    return Runner("torch_cuda", version, tuple(captured.buckets), lambda: CudaScorer(captured),
                  lambda batch, name: batch, network.precision_used)


def precisions() -> list[str]:
    """The precisions that the GPU computes in natively."""
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ["fp32", "bf16", "fp16"] if bf16 else ["fp32", "fp16"]
