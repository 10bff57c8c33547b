"""PyTorch and Triton on an NVIDIA GPU: the network in cuDNN's convolutions, the rest in ours."""

import warnings
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, one_stream
from scrd_fast.errors import PYTORCH_MISSING, EngineFileError
from scrd_fast.precisions import QUANTISED

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.convolutions import Choice, Choices
    from scrd_fast.backends.cudnn_plans import CudnnPlanner
    from scrd_fast.backends.layers import Layer
    from scrd_fast.backends.torch_network import TorchNetwork

# Compute capabilities whose tensor cores cuDNN's fused convolutions use; PyTorch has none.
_EIGHT_BITS_FROM = {"int8": (8, 0), "fp8": (8, 9)}
CONVOLUTIONS = "convolutions.json"  # the member of an engine file: how they run


class _TorchCuda(Backend):
    name = "torch_cuda"
    on_gpu = True
    tries_int8 = False
    members = (CONVOLUTIONS,)

    def missing(self) -> str | None:
        return None if find_spec("torch") else PYTORCH_MISSING

    def precisions(self) -> list[str]:
        import torch

        from scrd_fast.backends.cudnn_plans import frontend_missing

        capability = torch.cuda.get_device_capability()
        eight_bits = [] if frontend_missing() else [
            kind for kind, since in _EIGHT_BITS_FROM.items() if capability >= since]
        # bf16 is as fast as fp16, and coarser.
        bf16 = ["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        return [*eight_bits, "fp16", *bf16, "fp32"]

    def to_offer(self, precision: str) -> str | None:
        from scrd_fast.backends.cudnn_plans import frontend_missing

        return frontend_missing() if precision in QUANTISED else None

    def compile(self, request: CompileRequest) -> Runner:
        """The network is captured, a CUDA graph per bucket."""
        import torch
        import triton

        from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner, no_room, with_tail
        from scrd_fast.graph.tensors import DTYPES
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec, device = request.spec, request.device
        assert device is not None
        with own_state():  # its weights and buffers outlive the caller's inference mode
            try:
                network = _network(request, device)
                choices = _choose_ways(network, request, device)
            except torch.cuda.OutOfMemoryError as error:
                raise no_room(device) from error
            captured = CapturedNetwork(with_tail(network.run, spec, device), spec,
                                       request.buckets, device, DTYPES[network.precision],
                                       channels_last=True)
        version = f"{torch.__version__}, Triton {triton.__version__}"
        if network.ways:
            from scrd_fast.backends.cudnn_plans import frontend_version

            version += f", cuDNN frontend {frontend_version()}"
        return replace(cuda_runner(self.name, version, captured, network.precision_used),
                       compiled={CONVOLUTIONS: choices.to_bytes()})


def _choose_ways(
    network: "TorchNetwork", request: CompileRequest, device: "torch.device"
) -> "Choices":
    """How the network's convolutions run from now on: as the engine file says, else as is fastest
    here, where nvidia-cudnn-frontend is installed, else as PyTorch runs them."""
    import torch

    from scrd_fast.backends.convolutions import Choices, PlanRefused, make_ways
    from scrd_fast.backends.cudnn_plans import CudnnPlanner, frontend_missing
    from scrd_fast.torch_state import exact_convolutions

    kept = request.compiled.get(CONVOLUTIONS)
    choices = None if kept is None else Choices.from_bytes(bytes(kept))
    missing = frontend_missing()
    if not network.fused or (choices is None and missing) or (choices and not choices.ways):
        return choices or Choices()
    if missing:
        return _as_pytorch(choices, missing)
    with torch.no_grad(), torch.cuda.device(device), exact_convolutions:
        gpu, planner = torch.cuda.get_device_name(device), CudnnPlanner(device)
        if choices is None:
            choices = Choices(gpu, planner.version(),
                              _choose(network, request, planner, device))
        elif reason := choices.differs(gpu, planner.version()):
            return _as_pytorch(choices, reason)
        try:
            network.ways = make_ways(choices, planner)
        except PlanRefused as error:
            raise EngineFileError(f"{CONVOLUTIONS}: {error}") from error
    return choices


def _as_pytorch(choices: "Choices | None", reason: str) -> "Choices":
    assert choices is not None
    warnings.warn("the engine file's convolutions run as PyTorch runs them, which may be slower and"
                  f" rounds otherwise: {reason}", stacklevel=4)
    return choices


def _choose(network: "TorchNetwork", request: CompileRequest, planner: "CudnnPlanner",
            device: "torch.device") -> "dict[Layer, Choice]":
    """The fastest ways, for every batch size that fits into the GPU's memory."""
    import torch

    from scrd_fast.backends.convolutions import choose, milliseconds

    side, ways = request.spec.input_size, {}
    for n in request.buckets:
        try:
            layers = network.layers(torch.zeros(n, 3, side, side, device=device))
            ways.update(choose(layers, planner, milliseconds, device, request.progress))
        except torch.cuda.OutOfMemoryError:
            pass  # CapturedNetwork leaves the batch size out, with a warning
        torch.cuda.empty_cache()
    return ways


def _network(request: CompileRequest, device: "torch.device") -> "TorchNetwork":
    """The network with what follows its convolutions inside them, where cuDNN has such ones: in
    half precision and in 8 bits."""
    import torch

    from scrd_fast.backends.torch_network import TorchNetwork
    from scrd_fast.graph.portable import network_graph
    from scrd_fast.graph.quantize import BASE, quantise

    source, spec, precision = request.source, request.spec, request.precision
    graph, base = network_graph(source.proto, spec, features=True), precision
    if precision in QUANTISED:
        graph, base = quantise(graph, precision, source.quantisation), BASE
    if precision != "fp32":
        fused = TorchNetwork(graph, base, device=device, fuse=True)
        if (reason := _unusable(fused, spec.input_size, device)) is None:
            return fused
        warnings.warn(f"cuDNN {torch.backends.cudnn.version()} {reason}; the network runs with"
                      " plain convolutions, which are slower", stacklevel=2)
    return TorchNetwork(graph, base, device=device)


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
    # Some releases have a ReLU that makes 0 of NaN: an overflow would become a score. int8 has no
    # NaN: what overflows before is found in the features of the teacher's first stage, which is not
    # quantised.
    finite = [bool(output.isfinite().all()) for output in outputs]
    if all(finite) if "i8" in fused.precision_used()["convolutions"] else any(finite):
        return f"loses what is not finite in its fused convolutions in {fused.precision}"
    return None


BACKEND = _TorchCuda()
