"""TensorRT on an NVIDIA GPU: the whole network and its tail compiled into one plan.

The precision is written in the graph (graph.precision, graph.quantize), the network is strongly
typed, and one code path serves TensorRT 10.13 and later and 11. A plan runs behind the CUDA module
that all GPU backends share: one execution context and one CUDA graph per batch size.
"""

from dataclasses import replace

import onnx
import tensorrt as trt
import torch

from scrd_fast.backends.cuda import CapturedNetwork, cuda_runner
from scrd_fast.backends.plan import PLAN, TensorRtOptions
from scrd_fast.backends.runner import Runner, one_stream
from scrd_fast.backends.tensorrt_build import build_plan
from scrd_fast.backends.tensorrt_network import PlanNetwork
from scrd_fast.errors import EngineBuildError, EngineFileError
from scrd_fast.graph.precision import explicit_graph, precision_counts, scoring_graph
from scrd_fast.graph.quantize import KINDS, Quantisation, quantise
from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec


def make(
    proto: onnx.ModelProto, spec: ScoringSpec, precision: str, buckets: tuple[int, ...], mode: str,
    device: torch.device, *, options: TensorRtOptions, quantisation: Quantisation | None = None,
    plan: bytes | None = None, progress: Progress = silent,
) -> Runner:
    """The network in `proto` (see graph.portable.build_graph) as a plan behind the shared scorer.

    quantisation: for int8 and fp8. plan: of an engine file; nothing is built then.
    """
    one_stream("tensorrt", mode)
    if precision in KINDS:
        assert quantisation is not None
        graph = quantise(scoring_graph(proto, spec), precision, quantisation)
    else:
        graph = explicit_graph(proto, spec, precision)
    loaded = plan or build_plan(graph, spec, buckets, options, device, progress)
    try:
        with torch.inference_mode(False):
            network = PlanNetwork(loaded, graph, spec, device, options)
            captured = CapturedNetwork(network.run, spec, buckets, device, torch.float32,
                                       channels_last=False)
    except EngineFileError as error:
        if plan is None:
            raise EngineBuildError(f"a plan that was just built: {error}") from error
        raise
    counts = precision_counts(graph)
    return replace(
        cuda_runner("tensorrt", str(trt.__version__), captured, lambda: counts),
        compiled={PLAN: loaded}, layers=network.layers)


def precisions() -> list[str]:
    """The precisions that the current GPU computes in natively, through TensorRT, fastest first."""
    capability = torch.cuda.get_device_capability()
    bf16 = ["bf16"] if capability >= (8, 0) else []
    fp8 = ["fp8"] if capability >= (8, 9) else []
    return ["int8", *fp8, "fp16", *bf16, "fp32"]
