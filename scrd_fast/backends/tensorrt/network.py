"""A TensorRT plan that runs: one execution context per batch size."""

import json
from typing import Any

import onnx
import torch
from torch import Tensor

from scrd_fast.backends.cuda import no_room
from scrd_fast.backends.tensorrt.library import Errors, Library, cache_file, derive
from scrd_fast.backends.tensorrt.plan import PLAN, TensorRtOptions
from scrd_fast.backends.tensorrt.rtx import RuntimeCache, why_invalid
from scrd_fast.errors import EngineFileError
from scrd_fast.graph.portable import NETWORK_INPUT, OUTPUTS
from scrd_fast.spec import ScoringSpec


class _LayerTimes:
    """An IProfiler: milliseconds by layer."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def report_layer_time(self, layer: str, milliseconds: float) -> None:
        self.times[layer] = self.times.get(layer, 0.0) + milliseconds


class PlanNetwork:
    """A deserialised plan. Not for several threads at a time."""

    def __init__(self, library: Library, plan: bytes, graph: onnx.ModelProto, spec: ScoringSpec,
                 device: torch.device, options: TensorRtOptions) -> None:
        """graph: what the plan was built from; gives a stripped plan its weights. Raises
        EngineFileError for a plan that this TensorRT or GPU does not run."""
        self._library, self._device, self._side = library, device, spec.input_size
        self._errors = derive(Errors, library.trt.IErrorRecorder)()
        self._contexts: dict[int, Any] = {}
        with torch.cuda.device(device), library.hear_errors(self._errors) as why:
            torch.cuda.empty_cache()  # TensorRT cannot use what PyTorch keeps
            self._runtime = library.make(library.trt.Runtime, library.log)
            self._runtime.error_recorder = self._errors
            # Such a plan brings the library along that runs it; whether it is trusted was asked.
            self._runtime.engine_host_code_allowed = options.version_compatible
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                reason = (why_invalid(library.trt, self._runtime, plan)
                          if library.flavour.targets else None)
                raise EngineFileError(f"{PLAN}: {library.name} does not load it: {reason or why()}")
            if options.stripped:
                self._refit(graph)
            self._cache = (
                RuntimeCache(library.trt, self._engine, cache_file(library, device, "kernels"))
                if library.flavour.runtime_cache else None)
        self._check_tensors()

    def _refit(self, graph: onnx.ModelProto) -> None:
        trt, log = self._library.trt, self._library.log
        refitter = trt.Refitter(self._engine, log)
        parser = trt.OnnxParserRefitter(refitter, log)
        with self._library.hear_errors(self._errors) as why:
            if not (parser.refit_from_bytes(graph.SerializeToString())
                    and refitter.refit_cuda_engine()):
                missing = ", ".join(refitter.get_missing_weights())
                raise EngineFileError(f"{PLAN}: its weights cannot be put back: {why()}"
                                      f" (missing: {missing or 'none'})")

    def _check_tensors(self) -> None:
        """Buffers are made by these shapes: a plan of another network would write past them."""
        engine, side = self._engine, self._side
        expected = dict(zip((NETWORK_INPUT, *OUTPUTS),
                            ((3, side, side), (), (side, side), (3,)), strict=True))
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        found = {name: tuple(engine.get_tensor_shape(name))[1:] for name in names}
        kinds = {engine.get_tensor_dtype(name) for name in names}
        if found != expected or kinds != {self._library.trt.float32}:
            raise EngineFileError(f"{PLAN}: expected float32 tensors of {expected} per image, got"
                                  f" {found}")

    def _context(self, n: int) -> Any:
        """A context for batches of n. Raises torch.cuda.OutOfMemoryError where its layers' memory
        cannot be allocated."""
        # The plan may have profiles for more batch sizes: those left out for want of memory.
        sizes = [self._engine.get_tensor_profile_shape(NETWORK_INPUT, i)[2][0]
                 for i in range(self._engine.num_optimization_profiles)]
        if n not in sizes:
            raise EngineFileError(f"{PLAN}: expected a profile for batches of {n}, got {sizes}")
        stream = torch.cuda.current_stream(self._device)
        trt = self._library.trt
        with self._library.hear_errors(self._errors) as why:
            torch.cuda.empty_cache()
            # By default each context has the memory of the largest profile.
            context = self._engine.create_execution_context(
                trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
                if self._cache is None else self._cache.config)
            if context is None or not context.set_optimization_profile_async(
                    sizes.index(n), stream.cuda_stream):
                raise torch.cuda.OutOfMemoryError(f"TensorRT: {why()}")
            stream.synchronize()
            if not context.set_input_shape(NETWORK_INPUT, (n, 3, self._side, self._side)):
                raise EngineFileError(f"{PLAN}: does not take batches of {n}: {why()}")
            if self._cache is not None:
                if not context.is_stream_capturable(stream.cuda_stream):
                    raise EngineFileError(f"{PLAN}: its work for batches of {n} cannot be captured"
                                          f" in a CUDA graph: {why()}")
                self._cache.keep()
        context.error_recorder = self._errors
        return context

    def run(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised float32 (n, 3, S, S), n of one of the profiles, contiguous -> scores, maps and
        scale weights, enqueued on the current stream."""
        n = len(pixels)
        try:
            if n not in self._contexts:
                self._contexts[n] = self._context(n)
            return self._enqueue(self._contexts[n], pixels)
        except torch.cuda.OutOfMemoryError:
            self._contexts.clear()  # CapturedNetwork gives up all larger batches, too
            raise

    def _enqueue(self, context: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, side = len(pixels), self._side
        results = {name: pixels.new_empty(shape) for name, shape in zip(
            OUTPUTS, [(n,), (n, side, side), (n, 3)], strict=True)}
        for name, tensor in (results | {NETWORK_INPUT: pixels}).items():
            context.set_tensor_address(name, tensor.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream(self._device).cuda_stream):
            failed = self._errors.texts()
            raise EngineFileError(f"{PLAN}: {self._library.name} does not run it:"
                                  f" {'; '.join(failed) or self._library.log.last()}")
        scores, maps, weights = (results[name] for name in OUTPUTS)
        # A ReLU, a maximum and 8 bits may make a number of what is none.
        finite = torch.stack([t.isfinite().flatten(1).all(dim=1) for t in (pixels, maps)]).all(0)
        return torch.where(finite, scores, float("nan")), maps, weights

    def layers(self) -> list[dict[str, Any]]:
        """Name, type, precision of the outputs and milliseconds of each layer, for one image."""
        with torch.cuda.device(self._device):
            try:
                context = self._context(1)
            except torch.cuda.OutOfMemoryError as error:
                raise no_room(self._device) from error
            profiler = derive(_LayerTimes, self._library.trt.IProfiler)()
            context.profiler = profiler
            pixels = torch.zeros((1, 3, self._side, self._side), device=self._device)
            for _ in range(3):
                profiler.times.clear()
                self._enqueue(context, pixels)
                torch.cuda.current_stream(self._device).synchronize()
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context
        text = inspector.get_engine_information(
            self._library.trt.LayerInformationFormat.JSON)
        # It lists the layers of every profile.
        return [{"name": layer["Name"], "type": layer.get("LayerType", ""),
                 "outputs": [o.get("Format/Datatype", "") for o in layer.get("Outputs", [])],
                 "ms": profiler.times[layer["Name"]]}
                for layer in json.loads(text)["Layers"]
                if isinstance(layer, dict) and layer["Name"] in profiler.times]
