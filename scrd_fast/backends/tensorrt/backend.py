"""The backend; loads TensorRT when it is first asked for something."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import Backend, CompileRequest, build_again
from scrd_fast.backends.tensorrt.plan import (
    PLAN,
    PlanTies,
    TensorRtOptions,
    check_plan,
    remember_plan,
)
from scrd_fast.errors import PYTORCH_MISSING, EngineBuildError, EngineFileError
from scrd_fast.files import Contents
from scrd_fast.machine import Machine
from scrd_fast.precisions import QUANTISED

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.runner import Runner


class _TensorRt(Backend):
    name = "tensorrt"
    on_gpu = True
    members = (PLAN,)

    def missing(self) -> str | None:
        if not find_spec("torch"):
            return PYTORCH_MISSING
        if not find_spec("tensorrt"):
            import torch

            # The CUDA that PyTorch was built with, else the newest.
            major = (torch.version.cuda or "13").partition(".")[0]
            return f"the tensorrt package is not installed; pip install tensorrt-cu{major}"
        try:
            import tensorrt
        except (ImportError, OSError) as error:  # its libraries are packages of their own
            return f"the tensorrt package cannot be imported ({error})"
        version = tuple(int(part) for part in tensorrt.__version__.split(".")[:2])
        if version < (10, 13):
            return f"TensorRT 10.13 or later is needed, {tensorrt.__version__} is installed"
        return None

    def precisions(self) -> list[str]:
        import torch

        capability = torch.cuda.get_device_capability()
        bf16 = ["bf16"] if capability >= (8, 0) else []
        fp8 = ["fp8"] if capability >= (8, 9) else []
        return ["int8", *fp8, "fp16", *bf16, "fp32"]

    def compile(self, request: CompileRequest) -> "Runner":
        """A plan behind the shared scorer: the engine file's where there is one, else built."""
        import tensorrt as trt
        import torch

        from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner
        from scrd_fast.backends.runner import one_stream
        from scrd_fast.backends.tensorrt.build import build_plan
        from scrd_fast.backends.tensorrt.network import PlanNetwork
        from scrd_fast.graph.precision import explicit_graph, precision_counts, scoring_graph
        from scrd_fast.graph.quantize import quantise
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec, device, options = request.spec, request.device, request.options or TensorRtOptions()
        assert device is not None
        source = request.source
        with own_state():
            if request.precision in QUANTISED:
                graph = quantise(scoring_graph(source.proto, spec), request.precision,
                                 source.quantisation)
            else:
                graph = explicit_graph(source.proto, spec, request.precision)
        plan = request.compiled.get(PLAN)
        loaded = bytes(plan) if plan else build_plan(graph, spec, request.buckets, options,
                                                     device, request.progress)
        try:
            with own_state():
                network = PlanNetwork(loaded, graph, spec, device, options)
                captured = CapturedNetwork(network.run, spec, request.buckets, device,
                                           torch.float32, channels_last=False)
        except EngineFileError as error:
            if plan is None:
                raise EngineBuildError(f"a plan that was just built: {error}") from error
            raise
        counts = precision_counts(graph)
        return replace(
            cuda_runner(self.name, str(trt.__version__), captured, lambda: counts),
            compiled={PLAN: loaded}, layers=network.layers)

    def check_compiled(
        self, path: str | Path, built_on: Machine, plan: PlanTies | None,
        digests: Mapping[str, str], device: "torch.device | None", *, trust: bool,
    ) -> None:
        import torch

        gpu = built_on.gpu
        check_plan(path, gpu, plan, digests, import_module("tensorrt").__version__,
                   torch.cuda.get_device_capability(device), trust=trust)
        if gpu is not None and gpu.name != (here := torch.cuda.get_device_name(device)):
            warnings.warn(f"{path}: its TensorRT plan was built on another GPU, {gpu.name}, and may"
                          f" be slower on this {here}{build_again(path)}", stacklevel=5)

    def ties(self, version: str, options: TensorRtOptions | None) -> PlanTies:
        return PlanTies.here(version, options or TensorRtOptions())

    def remember(self, compiled: Mapping[str, Contents]) -> None:
        remember_plan(hashlib.sha256(compiled[PLAN]).hexdigest())


BACKEND = _TensorRt()
