"""The backend of a flavour; loads its library when it is first asked for something."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from scrd_fast.backends.backend import (
    CompileRequest,
    CrossCompiled,
    CrossCompiler,
    build_again,
)
from scrd_fast.backends.tensorrt.flavour import BF16_FROM, FLOAT8_FROM, Flavour
from scrd_fast.backends.tensorrt.plan import (
    PLAN,
    PlanTies,
    TensorRtOptions,
    check_plan,
    target_of,
)
from scrd_fast.errors import (
    PYTORCH_MISSING,
    BackendUnavailable,
    EngineBuildError,
    EngineFileError,
)
from scrd_fast.files import Contents
from scrd_fast.machine import Machine
from scrd_fast.precisions import QUANTISED
from scrd_fast.user_records import BUILT_PLANS, record_line

if TYPE_CHECKING:
    import onnx
    import torch

    from scrd_fast.backends.runner import Runner


class TensorRt(CrossCompiler):
    """TensorRT, or TensorRT for RTX."""

    on_gpu = True
    members = (PLAN,)

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self.name = flavour.backend
        self.targets = tuple(flavour.targets)

    def missing(self) -> str | None:
        if not find_spec("torch"):
            return PYTORCH_MISSING
        if reason := self.flavour.missing():
            return reason
        import torch

        if not self.targets or not torch.cuda.is_available():
            return None
        here = target_of(torch.cuda.get_device_capability())
        return None if here in self.targets else self.flavour.cannot.get(
            here, f"{self.flavour.title} compiles for {', '.join(self.targets)}, this GPU is"
                  f" {here}")

    def precisions(self) -> list[str]:
        import torch

        capability = torch.cuda.get_device_capability()
        bf16 = ["bf16"] if capability >= BF16_FROM else []
        fp8 = ["fp8"] if capability >= FLOAT8_FROM else []
        return ["int8", *fp8, "fp16", *bf16, "fp32"]

    def compile(self, request: CompileRequest) -> "Runner":
        """A plan behind the shared scorer: the engine file's where there is one, else built."""
        import torch

        from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner
        from scrd_fast.backends.runner import one_stream
        from scrd_fast.backends.tensorrt.build import build_plan
        from scrd_fast.backends.tensorrt.library import library
        from scrd_fast.backends.tensorrt.network import PlanNetwork
        from scrd_fast.graph.precision import precision_counts
        from scrd_fast.torch_state import own_state

        one_stream(self.name, request.mode)
        spec, device, options = request.spec, request.device, request.options or TensorRtOptions()
        assert device is not None
        self.flavour.check_options(options)
        graph, ours = _graph(request), library(self.flavour)
        plan = (request.compiled or {}).get(PLAN)
        loaded = bytes(plan) if plan else build_plan(ours, graph, spec, request.buckets, options,
                                                     device, request.progress)
        try:
            with own_state():
                network = PlanNetwork(ours, loaded, graph, spec, device, options)
                captured = CapturedNetwork(network.run, spec, request.buckets, device,
                                           torch.float32, channels_last=False)
        except EngineFileError as error:
            if plan is None:
                raise EngineBuildError(f"a plan that was just built: {error}") from error
            raise
        counts = precision_counts(graph)
        return replace(
            cuda_runner(self.name, self.flavour.version(), captured, lambda: counts),
            compiled={PLAN: loaded}, layers=network.layers)

    def check_targets(
        self, targets: Sequence[str], precision: str, options: TensorRtOptions
    ) -> None:
        if reason := self.flavour.missing():
            raise BackendUnavailable(f"backend {self.name!r}: {reason}")
        self.flavour.check_targets(targets, precision)
        self.flavour.check_options(options)

    def cross_compile(self, request: CompileRequest, targets: Sequence[str]) -> CrossCompiled:
        from scrd_fast.backends.tensorrt.build import compile_plan
        from scrd_fast.backends.tensorrt.library import library
        from scrd_fast.graph.precision import precision_counts

        graph, options = _graph(request), request.options or TensorRtOptions()
        plan = compile_plan(library(self.flavour), graph, request.spec, request.buckets, options,
                            targets, None, request.progress)
        version = self.flavour.version()
        return CrossCompiled(version, {PLAN: plan}, precision_counts(graph),
                             PlanTies.here(version, options, targets))

    def check_compiled(
        self, path: str | Path, built_on: Machine, plan: PlanTies | None,
        digests: Mapping[str, str], device: "torch.device | None", *, trust: bool,
    ) -> None:
        import torch

        gpu = built_on.gpu
        check_plan(path, gpu, plan, digests, self.flavour.version(),
                   torch.cuda.get_device_capability(device), trust=trust)
        if gpu is not None and gpu.name != (here := torch.cuda.get_device_name(device)):
            warnings.warn(f"{path}: its TensorRT plan was built on another GPU, {gpu.name}, and may"
                          f" be slower on this {here}{build_again(path)}", stacklevel=5)

    def ties(self, version: str, options: TensorRtOptions | None,
             device: "torch.device | None") -> PlanTies:
        import torch

        here = [target_of(torch.cuda.get_device_capability(device))] if self.targets else []
        return PlanTies.here(version, options or TensorRtOptions(), here)

    def remember(self, compiled: Mapping[str, Contents]) -> None:
        record_line(BUILT_PLANS, hashlib.sha256(compiled[PLAN]).hexdigest())


def _graph(request: CompileRequest) -> "onnx.ModelProto":
    """The network with its tail, every precision written in it."""
    from scrd_fast.graph.precision import explicit_graph, scoring_graph
    from scrd_fast.graph.quantize import quantise
    from scrd_fast.torch_state import own_state

    source, spec = request.source, request.spec
    with own_state():
        if request.precision in QUANTISED:
            return quantise(scoring_graph(source.proto, spec), request.precision,
                            source.quantisation)
        return explicit_graph(source.proto, spec, request.precision)
