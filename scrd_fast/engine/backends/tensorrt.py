"""TensorRT on an NVIDIA GPU: the whole network and its tail compiled into one plan.

The precision is written in the graph (engine.precision, engine.quantize), the network is strongly
typed, and one code path serves TensorRT 10.13 and later and 11. A plan runs behind the CUDA module
that all GPU backends share: one execution context and one CUDA graph per batch size.
"""

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import tensorrt as trt
import torch
from torch import Tensor

from scrd_fast.engine.backends.choice import QUANTISED
from scrd_fast.engine.backends.cuda import CapturedNetwork, cuda_runner, no_room
from scrd_fast.engine.backends.plan import PLAN, TensorRtOptions
from scrd_fast.engine.backends.runner import Runner, one_stream
from scrd_fast.engine.graph import NETWORK_INPUT, OUTPUTS
from scrd_fast.engine.precision import explicit_graph, precision_counts
from scrd_fast.engine.progress import Progress, silent
from scrd_fast.engine.quantize import RANGES, Ranges, quantise
from scrd_fast.errors import EngineBuildError, EngineFileError
from scrd_fast.files import atomic_write
from scrd_fast.spec import ScoringSpec


class _Log(trt.ILogger):
    """Keeps what TensorRT complains of, for the exception that follows."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)


class _Errors(trt.IErrorRecorder):
    """Errors of one engine, from whatever thread; their texts go into the Python exception."""

    def __init__(self) -> None:
        trt.IErrorRecorder.__init__(self)
        self._lock = threading.Lock()
        self._errors: list[tuple[Any, str]] = []

    def num_errors(self) -> int:
        return len(self._errors)

    def get_error_code(self, index: int) -> Any:
        return self._errors[index][0]

    def get_error_desc(self, index: int) -> str:
        return self._errors[index][1]

    def has_overflowed(self) -> bool:
        return False

    def clear(self) -> None:
        with self._lock:
            self._errors.clear()

    def report_error(self, code: Any, text: str) -> bool:
        with self._lock:
            self._errors.append((code, text))
        return True

    def text(self) -> str:
        with self._lock:
            return "; ".join(text for _, text in self._errors) or "no reason was given"


class _Monitor(trt.IProgressMonitor):
    """Passes the steps of the longest phase on."""

    def __init__(self, progress: Progress, what: str) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress, self._what = progress, what
        self._steps: dict[str, int] = {}

    def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
        self._steps[phase] = steps

    def step_complete(self, phase: str, step: int) -> bool:
        self._progress(step, max(self._steps.get(phase, 1), 1), f"{self._what}: {phase}")
        return True

    def phase_finish(self, phase: str) -> None:
        self._steps.pop(phase, None)


class _LayerTimes(trt.IProfiler):
    """Milliseconds by layer."""

    def __init__(self) -> None:
        trt.IProfiler.__init__(self)
        self.times: dict[str, float] = {}

    def report_layer_time(self, layer: str, milliseconds: float) -> None:
        self.times[layer] = self.times.get(layer, 0.0) + milliseconds


def _cache_path(device: torch.device) -> Path:
    """The user's timing cache for this TensorRT and GPU."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    major, minor = torch.cuda.get_device_capability(device)
    return root / "scrd_fast" / f"tensorrt-{trt.__version__}-sm{major}{minor}.timing"


@contextmanager
def _timing_cache(config: Any, device: torch.device) -> Iterator[None]:
    """Measurements of earlier builds; those of this one are kept for the next."""
    path = _cache_path(device)
    config.set_timing_cache(
        config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)
    yield
    with atomic_write(path) as temporary:
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))


def _parse(network: Any, graph: onnx.ModelProto, log: _Log) -> None:
    """Raise EngineBuildError with one line per node that TensorRT cannot take."""
    parser = trt.OnnxParser(network, log)
    if parser.parse(graph.SerializeToString()):
        return
    lines = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        lines.append(f"{error.node_name()} ({error.node_operator()}): {error.desc()}")
    raise EngineBuildError(f"TensorRT {trt.__version__} cannot take this network:\n"
                           + "\n".join(lines))


def build_plan(
    graph: onnx.ModelProto, spec: ScoringSpec, buckets: Sequence[int], options: TensorRtOptions,
    device: torch.device, progress: Progress,
) -> bytes:
    """Compile an explicit-precision graph; raises EngineBuildError.

    buckets: batch sizes, an optimisation profile each.
    """
    log = _Log()
    builder = trt.Builder(log)
    builder.error_recorder = errors = _Errors()
    network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(network, graph, log)
    if options.tail == "plugin":
        from scrd_fast.engine.backends.tensorrt_plugin import insert

        major, minor = torch.cuda.get_device_capability(device)
        insert(network, graph, 10 * major + minor)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.set_flag(trt.BuilderFlag.STRICT_NANS)  # an overflow must not become a score
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
    monitor = _Monitor(progress, "TensorRT")  # a name: TensorRT itself does not keep it alive
    config.progress_monitor = monitor
    side = spec.input_size
    for n in buckets:
        profile = builder.create_optimization_profile()
        profile.set_shape(NETWORK_INPUT, *[(n, 3, side, side)] * 3)
        config.add_optimization_profile(profile)
    with torch.cuda.device(device), _timing_cache(config, device):
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        texts = "; ".join(log.errors) or errors.text()
        hint = "" if options.workspace_gb is None else (
            f" (workspace_gb is {options.workspace_gb:g}; a larger one may be needed)")
        raise EngineBuildError(f"TensorRT {trt.__version__} could not build the network: {texts}"
                               f"{hint}")
    return bytes(plan)


class PlanNetwork:
    """A deserialised plan with one execution context per batch size."""

    def __init__(self, plan: bytes, graph: onnx.ModelProto, spec: ScoringSpec,
                 buckets: Sequence[int], device: torch.device, stripped: bool) -> None:
        """graph: what the plan was built from; gives a stripped plan its weights. Raises
        EngineFileError for a plan that this TensorRT or GPU does not run."""
        self._spec, self._device = spec, device
        self._log, self._errors = _Log(), _Errors()
        with torch.cuda.device(device):
            self._runtime = trt.Runtime(self._log)
            self._runtime.error_recorder = self._errors
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise EngineFileError(f"{PLAN}: TensorRT {trt.__version__} does not load it: "
                                      + ("; ".join(self._log.errors) or self._errors.text()))
            if stripped:
                self._refit(graph)
            self._contexts = {n: self._context(n) for n in buckets}

    def _refit(self, graph: onnx.ModelProto) -> None:
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
        if not (parser.refit_from_bytes(graph.SerializeToString())
                and refitter.refit_cuda_engine()):
            raise EngineFileError(f"{PLAN}: its weights cannot be put back: "
                                  + ("; ".join(self._log.errors) or self._errors.text()))

    def _context(self, n: int) -> Any:
        """A context for batches of n. The plan may have profiles for more batch sizes: those that
        a build left out for want of memory."""
        sizes = [self._engine.get_tensor_profile_shape(NETWORK_INPUT, i)[2][0]
                 for i in range(self._engine.num_optimization_profiles)]
        if n not in sizes:
            raise EngineFileError(f"{PLAN}: expected a profile for batches of {n}, got {sizes}")
        context = self._engine.create_execution_context()
        if context is None:  # it could not allocate the memory of its layers
            raise no_room(self._device)
        context.error_recorder = self._errors
        stream = torch.cuda.current_stream(self._device)
        context.set_optimization_profile_async(sizes.index(n), stream.cuda_stream)
        stream.synchronize()
        return context

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised float32 (n, 3, S, S), n one of the buckets, contiguous -> scores, maps and
        scale weights, enqueued on the current stream."""
        return self._enqueue(self._contexts[len(pixels)], pixels)

    def _enqueue(self, context: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, side = len(pixels), self._spec.input_size
        results = {name: pixels.new_empty(shape) for name, shape in zip(
            OUTPUTS, [(n,), (n, side, side), (n, 3)], strict=True)}
        context.set_input_shape(NETWORK_INPUT, tuple(pixels.shape))
        for name, tensor in (results | {NETWORK_INPUT: pixels}).items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            raise RuntimeError(f"TensorRT: {self._errors.text()}")
        scores, maps, weights = (results[name] for name in OUTPUTS)
        # TensorRT's maximum may pass over what is not a number.
        finite = maps.isfinite().flatten(1).all(dim=1)
        return torch.where(finite, scores, float("nan")), maps, weights

    def layers(self) -> list[dict[str, Any]]:
        """Name, type, precision of the outputs and milliseconds of each layer, for one image."""
        side = self._spec.input_size
        with torch.cuda.device(self._device):
            context = self._context(1)
            context.profiler = profiler = _LayerTimes()
            pixels = torch.zeros((1, 3, side, side), device=self._device)
            for _ in range(3):
                profiler.times.clear()
                self._enqueue(context, pixels)
                torch.cuda.current_stream(self._device).synchronize()
        inspector = self._engine.create_engine_inspector()
        text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return [{"name": layer["Name"], "type": layer.get("LayerType", ""),
                 "outputs": [o.get("Format/Datatype", "") for o in layer.get("Outputs", [])],
                 "ms": profiler.times.get(layer["Name"], 0.0)}
                for layer in json.loads(text)["Layers"]]


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str,
    device: torch.device, *, options: TensorRtOptions, ranges: Ranges | None = None,
    compiled: Mapping[str, bytes] | None = None,
    progress: Progress = silent,
) -> Runner:
    """The network in `proto` (see engine.graph.build_graph) as a plan behind the shared scorer.

    ranges: of the activations, for int8 and fp8 (see engine.quantize). compiled: the members of an
    engine file instead; with a plan among them nothing is built.
    """
    one_stream("tensorrt", mode)
    members = dict(compiled or {})
    if precision in QUANTISED:
        if ranges is not None:
            members[RANGES] = ranges.to_bytes()
        graph = quantise(proto, spec, precision, Ranges.from_bytes(members.get(RANGES, b"")))
    else:
        graph = explicit_graph(proto, spec, precision)
    if PLAN not in members:
        members[PLAN] = build_plan(graph, spec, buckets, options, device, progress)
    with torch.inference_mode(False):
        network = PlanNetwork(members[PLAN], graph, spec, buckets, device, options.stripped)
        captured = CapturedNetwork(network.run, spec, buckets, device, torch.float32,
                                   channels_last=False)
    counts = precision_counts(graph)
    return replace(
        cuda_runner("tensorrt", str(trt.__version__), captured, lambda: counts),
        compiled={n: d for n, d in members.items() if n in (PLAN, RANGES)}, layers=network.layers)


def precisions() -> list[str]:
    """The precisions that the GPU computes in natively, through TensorRT, fastest first."""
    capability = torch.cuda.get_device_capability()
    bf16 = ["bf16"] if capability >= (8, 0) else []
    fp8 = ["fp8"] if capability >= (8, 9) else []
    return ["int8", *fp8, "fp16", *bf16, "fp32"]
