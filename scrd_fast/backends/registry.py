"""Which backends there are, and which can run here. Adding one is adding its module and its name.

Importing this loads no runtime: the command line names the backends in its help.
"""

import re
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest, CrossCompiler
from scrd_fast.errors import PYTORCH_MISSING, BackendUnavailable, expect
from scrd_fast.precisions import PRECISIONS

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.runner import Runner

# "auto" takes the first that can run; TensorRT for RTX, which has not yet run on a GPU, by name.
BACKENDS = ("tensorrt", "torch_cuda", "tensorrt_rtx", "openvino", "torch_eager")
MODES = ("latency", "throughput")


def backend_of(name: str) -> Backend:
    """The backend of that name, whether it can run here or not."""
    found: Backend = import_module(f"scrd_fast.backends.{name}").BACKEND
    return found


def check_precision(backend: str, precision: str, device: str | None = None) -> None:
    """Raise unless `precision` is "auto" or one that the backend offers on this machine, on this
    device."""
    choices = ("auto", *PRECISIONS)
    expect(precision in choices, "precision", f"one of {choices}", repr(precision))
    offered = native_precisions(backend, device)
    if precision != "auto" and precision not in offered:
        told = backend_of(backend).to_offer(precision)
        raise BackendUnavailable(
            f"precision {precision!r}: this machine does not compute in it natively through"
            f" {backend}; it offers {offered}" + (f"; {told}" if told else ""))


def choose_backend(backend: str, device: str | None) -> str:
    """The backend to use for "auto", or the forced one; raises where it cannot run here.

    device: "cpu", "cuda" or "cuda:<index>"; None means a GPU where one can be used.
    """
    expect(backend in ("auto", *BACKENDS), "backend", f"one of {('auto', *BACKENDS)}",
           repr(backend))
    expect(device is None or re.fullmatch(r"cpu|cuda(:\d+)?", device) is not None, "device",
           "None, 'cpu', 'cuda' or 'cuda:<index>'", repr(device))
    wants_gpu = device is not None and device.startswith("cuda")
    if backend == "auto":
        on_gpu = wants_gpu or (device is None and cuda_missing(None) is None)
        usable = [each.name for each in _of_kind(on_gpu) if each.missing() is None]
        if not usable:
            raise BackendUnavailable(f"backend: {_of_kind(on_gpu)[-1].missing()}")
        backend = usable[0]
    chosen = backend_of(backend)
    expect(device is None or wants_gpu == chosen.on_gpu, "device",
           f"{'a GPU' if chosen.on_gpu else 'cpu'} with backend {backend!r}", repr(device))
    if chosen.on_gpu and (missing := cuda_missing(device)):
        what = f"backend {backend!r}" if device is None else f"device {device!r}"
        raise BackendUnavailable(f"{what}: {missing}")
    if missing := chosen.missing():
        others = [each.name for each in _of_kind(chosen.on_gpu) if each.missing() is None]
        instead = f", or choose backend={others[0]!r}" if others else ""
        raise BackendUnavailable(f"backend {backend!r}: {missing}{instead}")
    return backend


def choose_cross_compiler(backend: str) -> CrossCompiler:
    """The backend that compiles for GPUs which are not here, for "auto", or the forced one."""
    expect(backend in ("auto", *BACKENDS), "backend", f"one of {('auto', *BACKENDS)}",
           repr(backend))
    able = {each.name: each for each in map(backend_of, BACKENDS)
            if isinstance(each, CrossCompiler) and each.targets}
    if backend != "auto" and backend not in able:
        raise BackendUnavailable(f"backend {backend!r}: it compiles for the machine at hand alone;"
                                 f" for others: {', '.join(able)}")
    return next(iter(able.values())) if backend == "auto" else able[backend]


def _of_kind(on_gpu: bool) -> list[Backend]:
    return [each for each in map(backend_of, BACKENDS) if each.on_gpu == on_gpu]


def cuda_missing(device: str | None) -> str | None:
    """Why a GPU cannot be used through PyTorch, and what to do; None where it can."""
    if not find_spec("torch"):
        return PYTORCH_MISSING
    import torch

    from scrd_fast.ops.implementations import no_triton

    if torch.version.cuda is None:
        return (f"PyTorch {torch.__version__} was built without CUDA; install a CUDA build from"
                " pytorch.org")
    if not torch.cuda.is_available():
        return why_no_gpu()
    index = int(device.partition(":")[2] or 0) if device else 0
    if index >= torch.cuda.device_count():
        return f"expected an index below {torch.cuda.device_count()}, the number of GPUs"
    return no_triton()


def why_no_gpu() -> str:
    """Why PyTorch, built for CUDA or not, reaches no GPU: none, a driver too old, or a fork."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as error:  # the first from a build without CUDA
        reason = str(error).strip().splitlines()[0].rstrip(".")
        return f"PyTorch finds no NVIDIA GPU ({reason}); `nvidia-smi` shows whether the driver does"
    return "PyTorch finds no NVIDIA GPU; `nvidia-smi` shows whether the driver does"


def gpu_of(backend: str, device: str | None) -> "torch.device | None":
    """The GPU that a backend runs on, with its index; None for one that runs on CPUs."""
    if not backend_of(backend).on_gpu:
        return None
    import torch

    place = torch.device(device or "cuda")
    return place if place.index is not None else torch.device("cuda", torch.cuda.current_device())


def native_precisions(backend: str, device: str | None = None) -> list[str]:
    """The precisions that `backend` computes in natively on this machine, fastest first."""
    if (place := gpu_of(backend, device)) is None:
        return backend_of(backend).precisions()
    import torch

    with torch.cuda.device(place):
        return backend_of(backend).precisions()


def make_runner(backend: str, request: CompileRequest) -> "Runner":
    """Compile a network for a backend; raises what it raises, and InputError."""
    check_precision(backend, request.precision, None if request.device is None
                    else str(request.device))
    expect(request.mode in MODES, "mode", f"one of {MODES}", repr(request.mode))
    return backend_of(backend).compile(request)
