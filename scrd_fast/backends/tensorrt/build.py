"""From a graph with explicit precisions to a TensorRT plan."""

import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import onnx
import torch

from scrd_fast.backends.tensorrt.library import Library, cache_file, derive
from scrd_fast.backends.tensorrt.plan import TensorRtOptions, capability_of, target_of
from scrd_fast.backends.tensorrt.rtx import set_targets
from scrd_fast.errors import EngineBuildError, OutputError
from scrd_fast.files import atomic_write
from scrd_fast.graph.portable import NETWORK_INPUT
from scrd_fast.progress import Progress
from scrd_fast.spec import ScoringSpec


class _Monitor:
    """An IProgressMonitor that passes the steps of the phases on; what is raised meanwhile ends the
    build."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: dict[str, int] = {}
        self.error: BaseException | None = None

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._steps[phase] = steps

    def step_complete(self, phase: str, step: int) -> bool:
        if self.error is None:
            try:
                self._progress(step, max(self._steps.get(phase, 1), 1), f"TensorRT: {phase}")
            except BaseException as error:  # TensorRT would print it and forget it
                self.error = error
        return self.error is None

    def phase_finish(self, phase: str) -> None:
        self._steps.pop(phase, None)


@contextmanager
def _interrupts(monitor: _Monitor) -> Iterator[None]:
    """Ctrl-C in the block ends the build. It would mostly be raised as a callback of TensorRT's
    begins, be it only the logger's, where it is printed and forgotten."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupted(number: int, frame: FrameType | None) -> None:
        try:
            before(number, frame)
        except BaseException as error:
            monitor.error = error

    signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _timing_cache(library: Library, config: Any, path: Path | None) -> Iterator[None]:
    """Measurements of earlier builds; those of this one are kept for the next. They only save time:
    a cache that cannot be read or written is a warning."""
    if path is None:
        yield
        return
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        warnings.warn(f"TensorRT's timing cache cannot be read: {error}", stacklevel=2)
        yield
        return
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    library.log.clear()  # what it said of the old cache is no reason of what may fail later
    yield
    if (kept := config.get_timing_cache()) is None:
        return
    try:
        with atomic_write(path) as temporary:
            temporary.write_bytes(bytes(kept.serialize()))
    except OutputError as error:
        warnings.warn(f"TensorRT's timing cache is not kept: {error}", stacklevel=2)


def _parse(library: Library, network: Any, graph: onnx.ModelProto) -> None:
    """Raise EngineBuildError with one line per node that TensorRT cannot take."""
    parser = library.trt.OnnxParser(network, library.log)
    if parser.parse(graph.SerializeToString()):
        return
    lines = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        lines.append(f"{error.node_name()} ({error.node_operator()}): {error.desc()}")
    raise EngineBuildError(f"{library.name} cannot take this network:\n" + "\n".join(lines))


def _configure(trt: Any, config: Any, options: TensorRtOptions) -> None:
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.STRICT_NANS)
    if options.workspace_gb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE,
                                     int(options.workspace_gb * 2**30))
    config.builder_optimization_level = options.level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def _built(
    library: Library, graph: onnx.ModelProto, side: int, buckets: Sequence[int],
    options: TensorRtOptions, targets: Sequence[str], cache: Path | None, monitor: Any,
) -> bytes | None:
    """The plan; None where TensorRT gives none. Raises EngineBuildError, BackendUnavailable."""
    # No error recorder: the log hears all that one would. And where the network has one as its
    # parser is made, the parser puts it back when it is let go, into a network that Python has let
    # go before: the process ends in SIGSEGV.
    trt = library.trt
    builder = library.make(trt.Builder, library.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, network, graph)
    if options.tail == "plugin":
        from scrd_fast.backends.tensorrt.plugin import insert

        major, minor = capability_of(targets[0])
        insert(network, graph, 10 * major + minor)
    config = builder.create_builder_config()
    _configure(trt, config, options)
    if library.flavour.targets:
        set_targets(trt, config, targets)
    config.progress_monitor = monitor
    for n in buckets:
        profile = builder.create_optimization_profile()
        profile.set_shape(NETWORK_INPUT, *[(n, 3, side, side)] * 3)
        config.add_optimization_profile(profile)
    with _timing_cache(library, config, cache):
        plan = builder.build_serialized_network(network, config)
    return None if plan is None else bytes(plan)


def compile_plan(
    library: Library, graph: onnx.ModelProto, spec: ScoringSpec, buckets: Sequence[int],
    options: TensorRtOptions, targets: Sequence[str], cache: Path | None, progress: Progress,
) -> bytes:
    """Compile an explicit-precision graph, through TensorRT alone.

    buckets: batch sizes, an optimisation profile each; targets: the GPUs to compile for, by name,
    where the library does that for others than the one at hand, else that one's name; cache: file
    of the timing cache. Raises EngineBuildError, BackendUnavailable and what `progress` raises,
    which ends the build, as Ctrl-C does.
    """
    monitor = derive(_Monitor, library.trt.IProgressMonitor)(progress)
    with library.hear_errors() as why, _interrupts(monitor):
        plan = _built(library, graph, spec.input_size, buckets, options, targets, cache, monitor)
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        hint = "" if options.workspace_gb is None else (
            f" (workspace_gb is {options.workspace_gb:g}; a larger one may be needed)")
        raise EngineBuildError(f"{library.name} could not build the network: {why()}{hint}")
    return plan


def build_plan(
    library: Library, graph: onnx.ModelProto, spec: ScoringSpec, buckets: Sequence[int],
    options: TensorRtOptions, device: torch.device, progress: Progress,
) -> bytes:
    """`compile_plan` for this GPU, with the user's timing cache."""
    target = target_of(torch.cuda.get_device_capability(device))
    with torch.cuda.device(device):
        torch.cuda.empty_cache()  # TensorRT cannot use what PyTorch keeps
        cache = cache_file(library, device, "timing") if library.flavour.timing_cache else None
        return compile_plan(library, graph, spec, buckets, options, [target], cache, progress)
