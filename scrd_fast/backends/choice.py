"""Which backend, precision and mode: what there is, what can run here, and making its runner."""

import re
from importlib.util import find_spec
from typing import Any

import onnx
import torch

from scrd_fast.backends.runner import Runner
from scrd_fast.errors import BackendUnavailable, expect
from scrd_fast.graph.quantize import KINDS, Quantisation
from scrd_fast.ops.implementations import no_triton
from scrd_fast.spec import ScoringSpec

PRECISIONS = ("fp32", "bf16", "fp16", *KINDS)
BACKENDS = ("openvino", "torch_eager", "tensorrt", "torch_cuda")
GPU_BACKENDS = ("tensorrt", "torch_cuda")
MODES = ("latency", "throughput")


def check_precision(backend: str, precision: str, device: str | None = None) -> None:
    """Raise unless `precision` is "auto" or one that the backend offers on this machine, on this
    device."""
    choices = ("auto", *PRECISIONS)
    expect(precision in choices, "precision", f"one of {choices}", repr(precision))
    offered = native_precisions(backend, device)
    if precision != "auto" and precision not in offered:
        raise BackendUnavailable(
            f"precision {precision!r}: this machine does not compute in it natively through"
            f" {backend}; it offers {offered}"
        )


def choose_backend(backend: str, device: str | None) -> str:
    """The backend to use for "auto", or the forced one; raises where it cannot run here.

    device: "cpu", "cuda" or "cuda:<index>"; None means a GPU where one can be used.
    """
    expect(backend in ("auto", *BACKENDS), "backend", f"one of {('auto', *BACKENDS)}",
           repr(backend))
    expect(device is None or re.fullmatch(r"cpu|cuda(:\d+)?", device) is not None, "device",
           "None, 'cpu', 'cuda' or 'cuda:<index>'", repr(device))
    on_gpu = device is not None and device.startswith("cuda")
    if backend == "auto":
        if on_gpu or (device is None and cuda_missing(None) is None):
            backend = "torch_cuda" if tensorrt_missing() else "tensorrt"
        else:
            backend = "torch_eager" if openvino_missing() else "openvino"
    fits = device is None or on_gpu == (backend in GPU_BACKENDS)
    expect(fits, "device", f"{'a GPU' if backend in GPU_BACKENDS else 'cpu'} with backend"
           f" {backend!r}", repr(device))
    if backend == "openvino" and (missing := openvino_missing()):
        raise BackendUnavailable(f"backend 'openvino': {missing}, or choose backend='torch_eager'")
    if backend in GPU_BACKENDS and (missing := cuda_missing(device)):
        what = f"backend {backend!r}" if device is None else f"device {device!r}"
        raise BackendUnavailable(f"{what}: {missing}")
    if backend == "tensorrt" and (missing := tensorrt_missing()):
        raise BackendUnavailable(f"backend 'tensorrt': {missing}, or choose backend='torch_cuda'")
    return backend


def tensorrt_missing() -> str | None:
    """Why TensorRT cannot be used, and what to do; None where it can."""
    if not find_spec("tensorrt"):
        return f"the tensorrt package is not installed; pip install tensorrt-cu{_cuda_major()}"
    try:
        import tensorrt
    except (ImportError, OSError) as error:  # its libraries are packages of their own
        return f"the tensorrt package cannot be imported ({error})"
    version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
    if version < (10, 13):
        return f"TensorRT 10.13 or later is needed, {tensorrt.__version__} is installed"
    return None


def _cuda_major() -> str:
    """Of the CUDA that PyTorch was built with, else the newest."""
    return (torch.version.cuda or "13").partition(".")[0]


def cuda_missing(device: str | None) -> str | None:
    """Why a GPU cannot be used through PyTorch, and what to do; None where it can."""
    if torch.version.cuda is None:
        return (f"PyTorch {torch.__version__} was built without CUDA; install a CUDA build from"
                " pytorch.org")
    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU; `nvidia-smi` shows whether the driver does"
    index = int(device.partition(":")[2] or 0) if device else 0
    if index >= torch.cuda.device_count():
        return f"expected an index below {torch.cuda.device_count()}, the number of GPUs"
    return no_triton()


def openvino_missing() -> str | None:
    """Why OpenVINO cannot be used, and what to do; None where it can."""
    if not find_spec("openvino"):
        return "the openvino package is not installed; pip install openvino"
    if not find_spec("scrd_fast._openvino"):
        return ("scrd_fast was installed where OpenVINO was not, without the runner for it;"
                " install scrd_fast again")
    return None


def native_precisions(backend: str, device: str | None = None) -> list[str]:
    """The precisions that `backend` computes in natively on this machine, fastest first."""
    if backend == "openvino":
        from scrd_fast.backends.openvino import precisions
    elif backend == "torch_cuda":
        from scrd_fast.backends.torch_cuda import precisions
    elif backend == "tensorrt":
        from scrd_fast.backends.tensorrt import precisions
    else:
        from scrd_fast.backends.torch_eager import precisions
    if backend not in GPU_BACKENDS:
        return precisions()
    with torch.cuda.device(_gpu(device)):
        return precisions()


def _gpu(device: str | None) -> torch.device:
    """With its index."""
    place = torch.device(device or "cuda")
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def make_runner(
    backend: str, proto: onnx.ModelProto, spec: ScoringSpec, precision: str,
    buckets: tuple[int, ...], mode: str = "latency", device: str | None = None,
    quantisation: Quantisation | None = None, **of_tensorrt: Any,
) -> Runner:
    """Compile the network in `proto` for a backend; raises BackendUnavailable.

    proto: what graph.portable.build_graph gives; buckets: batch sizes rising from 1; mode:
    "latency" (one stream, all cores) or "throughput" (several streams, where the backend has
    them); device: which GPU, for a backend that runs on one; quantisation: for int8
    and fp8; of_tensorrt: what backends.tensorrt.make takes besides.
    """
    check_precision(backend, precision, device)
    expect(mode in MODES, "mode", f"one of {MODES}", repr(mode))
    if backend in GPU_BACKENDS:
        place = _gpu(device)
        if backend == "tensorrt":
            from scrd_fast.backends.tensorrt import make as make_plan

            return make_plan(proto, spec, precision, buckets, mode, place,
                             quantisation=quantisation, **of_tensorrt)
        from scrd_fast.backends.torch_cuda import make as make_on_gpu

        return make_on_gpu(proto, spec, precision, buckets, mode, place)
    if backend == "openvino":
        from scrd_fast.backends.openvino import make as make_on_cpu

        return make_on_cpu(proto, spec, precision, buckets, mode, quantisation=quantisation)
    from scrd_fast.backends.torch_eager import make

    return make(proto, spec, precision, buckets, mode)
