"""PyTorch and Triton on an NVIDIA GPU: the network in cuDNN's convolutions, the rest in ours."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest
from scrd_fast.backends.runner import Runner, one_stream
from scrd_fast.errors import PYTORCH_MISSING, EngineBuildError, EngineFileError
from scrd_fast.graph.stored import CONVOLUTIONS
from scrd_fast.precisions import QUANTISED

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.convolutions import Choices, Planner
    from scrd_fast.backends.layers import Layer
    from scrd_fast.backends.torch_network import TorchNetwork

# Compute capabilities whose tensor cores cuDNN's fused convolutions use; PyTorch has none.
_EIGHT_BITS_FROM = {"int8": (8, 0), "fp8": (8, 9)}


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

        eight_bits = [] if frontend_missing() else [
            kind for kind in _EIGHT_BITS_FROM if _has_tensor_cores(kind)]
        # bf16 is as fast as fp16, and coarser.
        bf16 = ["bf16"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
        return [*eight_bits, "fp16", *bf16, "fp32"]

    def to_offer(self, precision: str) -> str | None:
        from scrd_fast.backends.cudnn_plans import frontend_missing

        return frontend_missing() if _has_tensor_cores(precision) else None

    def compile(self, request: CompileRequest) -> Runner:
        """The network is captured, a CUDA graph per bucket."""
        import torch
        import triton

        from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner, no_room, with_tail
        from scrd_fast.backends.cudnn_plans import frontend_version
        from scrd_fast.graph.tensors import DTYPES
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec, device = request.spec, request.device
        assert device is not None
        # Its weights outlive the caller's inference mode, and Triton launches on the current GPU.
        with own_state(), torch.cuda.device(device):
            try:
                network = _network(request, device)
                choices = _settle_ways(network, request, device)
            except torch.cuda.OutOfMemoryError as error:
                raise no_room(device) from error
            with _refusals_of(request):
                captured = CapturedNetwork(with_tail(network.run, spec, device), spec,
                                           request.buckets, device, DTYPES[network.precision],
                                           channels_last=True)
        version = f"{torch.__version__}, Triton {triton.__version__}"
        if network.ways:
            version += f", cuDNN frontend {frontend_version()}"
        return replace(cuda_runner(self.name, version, captured, network.precision_used),
                       compiled={CONVOLUTIONS: choices.to_bytes()})


def _has_tensor_cores(kind: str) -> bool:
    """Whether the current GPU multiplies 8-bit numbers of a kind."""
    import torch

    return kind in _EIGHT_BITS_FROM and (
        torch.cuda.get_device_capability() >= _EIGHT_BITS_FROM[kind])


def _settle_ways(
    network: "TorchNetwork", request: CompileRequest, device: "torch.device"
) -> "Choices":
    """Let the network's convolutions run as the engine file says; where it is built, as is fastest
    here; and as PyTorch runs them where nvidia-cudnn-frontend is not installed."""
    import torch

    from scrd_fast.backends.convolutions import Choices, milliseconds
    from scrd_fast.backends.cudnn_plans import CudnnPlanner, frontend_missing
    from scrd_fast.torch_state import exact_convolutions

    loaded = None
    if request.compiled is not None:  # files of older releases have none
        kept = request.compiled.get(CONVOLUTIONS)
        loaded = Choices.from_bytes(bytes(kept)) if kept else Choices()
    missing = frontend_missing()
    if not network.fused or (request.precision not in QUANTISED and (
            missing if loaded is None else not loaded.ways)):
        return loaded or Choices()
    if missing:
        return _as_pytorch(request, loaded, missing)
    with torch.no_grad(), exact_convolutions:
        try:
            planner = CudnnPlanner(device)
        except (ImportError, OSError, RuntimeError) as error:
            return _as_pytorch(request, loaded,
                               f"cuDNN's graph API does not start here ({error})")
        return _settle_with(network, request, loaded, planner, torch.cuda.get_device_name(device),
                            milliseconds, device)


def _settle_with(
    network: "TorchNetwork", request: CompileRequest, loaded: "Choices | None",
    planner: "Planner", gpu: str, time: "Callable[[Callable[[], object]], float]",
    device: "torch.device"
) -> "Choices":
    """The same with what cuDNN offers. gpu: its name; time: milliseconds of a call."""
    import torch

    from scrd_fast.backends.convolutions import Choices, choose, make_way

    if loaded is not None:
        if reason := loaded.differs(gpu, planner.version()):
            return _as_pytorch(request, loaded, reason)
        with _refusals_of(request):
            network.ways = {layer: make_way(layer, choice, planner)
                            for layer, choice in loaded.ways.items()}
        return loaded
    side = request.spec.input_size
    layers: dict[Layer, None] = {}
    for n in request.buckets:
        try:
            layers |= dict.fromkeys(network.layers(torch.zeros(n, 3, side, side, device=device)))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()  # CapturedNetwork leaves the batch size out, with a warning
    chosen = choose(layers, planner, time, device, request.progress)
    torch.cuda.empty_cache()
    without = [layer for layer in layers if layer.eight_bits and layer not in chosen]
    if without:
        raise EngineBuildError(
            f"precision {request.precision!r}: cuDNN {planner.version()} computes {len(without)} of"
            f" {len(layers)} convolutions on this GPU not at all or not rightly, such as"
            f" {without[0]}; build in fp16")
    network.ways = {layer: way for layer, (_, way) in chosen.items()}
    return Choices(gpu, planner.version(), {layer: choice for layer, (choice, _) in chosen.items()})


def _as_pytorch(
    request: CompileRequest, loaded: "Choices | None", reason: str
) -> "Choices":
    """What was loaded, for a machine that can use it; PyTorch runs the convolutions here, but for
    those of 8 bits, which it does not have."""
    from scrd_fast.backends.convolutions import Choices

    if request.precision in QUANTISED and loaded is None:
        raise EngineBuildError(f"precision {request.precision!r}: {reason}")
    if request.precision in QUANTISED:
        raise EngineFileError(f"{CONVOLUTIONS}: how its convolutions run: {reason}")
    warnings.warn(f"the convolutions run as PyTorch runs them, which may be slower and rounds"
                  f" otherwise than what was chosen for them: {reason}", stacklevel=4)
    return loaded or Choices()


@contextmanager
def _refusals_of(request: CompileRequest) -> Iterator[None]:
    """Blame the engine file, where one is loaded, for plans that cuDNN refuses."""
    from scrd_fast.backends.convolutions import PlanRefused

    try:
        yield
    except PlanRefused as error:
        if request.compiled is None:
            raise
        raise EngineFileError(f"{CONVOLUTIONS}: {error}") from error


def _network(request: CompileRequest, device: "torch.device") -> "TorchNetwork":
    """The network with what follows its convolutions inside them, where cuDNN has such ones: in
    half precision and in 8 bits. Raises EngineBuildError where 8 bits cannot be had."""
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
        if precision in QUANTISED:
            raise EngineBuildError(f"precision {precision!r}: cuDNN"
                                   f" {torch.backends.cudnn.version()} {reason}; build in fp16")
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
    # Some releases have a ReLU that makes 0 of NaN: an overflow would become a score. In 8 bits it
    # may, where the features of the teacher's first stage, which is not quantised, show it.
    finite = [bool(output.isfinite().all()) for output in outputs]
    eight_bits = fused.precision_used()["convolutions"].keys() & {"i8", "f8"}
    if all(finite) if eight_bits else any(finite):
        return f"loses what is not finite in its fused convolutions in {fused.precision}"
    return None


BACKEND = _TorchCuda()
