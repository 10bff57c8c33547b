"""The backend; loads TensorRT when it is first asked for something."""

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scrd_fast.backends.backend import Backend, CompileRequest, build_again
from scrd_fast.backends.tensorrt.plan import (
    PLAN,
    TensorRtOptions,
    check_plan,
    plan_fingerprint,
    remember_plan,
    stored_options,
)
from scrd_fast.errors import EngineBuildError, EngineFileError

if TYPE_CHECKING:
    import torch

    from scrd_fast.backends.runner import Runner


class _TensorRt(Backend):
    name = "tensorrt"
    on_gpu = True
    members = (PLAN,)

    def missing(self) -> str | None:
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
        from scrd_fast.graph.quantize import KINDS, quantise

        one_stream(self.name, request.mode)
        spec, device, options = request.spec, request.device, request.options or TensorRtOptions()
        assert device is not None
        if request.precision in KINDS:
            assert request.quantisation is not None
            graph = quantise(scoring_graph(request.proto, spec), request.precision,
                             request.quantisation)
        else:
            graph = explicit_graph(request.proto, spec, request.precision)
        plan = request.compiled.get(PLAN)
        loaded = plan or build_plan(graph, spec, request.buckets, options, device,
                                    request.progress)
        try:
            with torch.inference_mode(False):
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

    def stored_options(
        self, path: str | Path, fingerprint: Mapping[str, Any]
    ) -> TensorRtOptions:
        return stored_options(path, fingerprint)

    def check_compiled(
        self, path: str | Path, fingerprint: Mapping[str, Any], digests: Mapping[str, str],
        device: "torch.device | None", *, trust: bool,
    ) -> None:
        import torch

        check_plan(path, fingerprint, digests, import_module("tensorrt").__version__,
                   torch.cuda.get_device_capability(device), trust=trust)
        if (built := fingerprint["gpu"]) != (here := torch.cuda.get_device_name(device)):
            warnings.warn(f"{path}: its TensorRT plan was built on another GPU, {built}, and may be"
                          f" slower on this {here}{build_again(path)}", stacklevel=5)

    def ties(self, version: str, options: TensorRtOptions | None) -> dict[str, Any]:
        return {"plan": plan_fingerprint(version, options or TensorRtOptions())}

    def remember(self, compiled: Mapping[str, bytes]) -> None:
        remember_plan(hashlib.sha256(compiled[PLAN]).hexdigest())


BACKEND = _TensorRt()
