"""TensorRT on an NVIDIA GPU: the whole network and its tail compiled into one plan.

The precision is written in the graph (engine.precision, engine.quantize), the network is strongly
typed, and one code path serves TensorRT 10.13 and later and 11. A plan runs behind the CUDA module
that all GPU backends share: one execution context and one CUDA graph per batch size.
"""

from collections.abc import Mapping
from dataclasses import replace

import onnx
import tensorrt as trt
import torch

from scrd_fast.engine.backends.cuda import CapturedNetwork, cuda_runner
from scrd_fast.engine.backends.plan import PLAN, TensorRtOptions
from scrd_fast.engine.backends.runner import Runner, one_stream
from scrd_fast.engine.backends.tensorrt_build import build_plan
from scrd_fast.engine.backends.tensorrt_network import PlanNetwork
from scrd_fast.engine.precision import explicit_graph, precision_counts
from scrd_fast.engine.progress import Progress, silent
from scrd_fast.engine.quantize import KINDS, RANGES, Ranges, quantise
from scrd_fast.errors import EngineBuildError, EngineFileError
from scrd_fast.spec import ScoringSpec


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
    if precision in KINDS:
        if ranges is not None:
            members[RANGES] = ranges.to_bytes()
        graph = quantise(proto, spec, precision, Ranges.from_bytes(members.get(RANGES, b"")))
    else:
        graph = explicit_graph(proto, spec, precision)
    built = PLAN not in members
    if built:
        members[PLAN] = build_plan(graph, spec, buckets, options, device, progress)
    try:
        with torch.inference_mode(False):
            network = PlanNetwork(members[PLAN], graph, spec, device, options)
            captured = CapturedNetwork(network.run, spec, buckets, device, torch.float32,
                                       channels_last=False)
    except EngineFileError as error:
        if built:
            raise EngineBuildError(f"a plan that was just built: {error}") from error
        raise
    counts = precision_counts(graph)
    return replace(
        cuda_runner("tensorrt", str(trt.__version__), captured, lambda: counts),
        compiled={n: d for n, d in members.items() if n in (PLAN, RANGES)}, layers=network.layers)


def precisions() -> list[str]:
    """The precisions that the current GPU computes in natively, through TensorRT, fastest first."""
    capability = torch.cuda.get_device_capability()
    bf16 = ["bf16"] if capability >= (8, 0) else []
    fp8 = ["fp8"] if capability >= (8, 9) else []
    return ["int8", *fp8, "fp16", *bf16, "fp32"]
