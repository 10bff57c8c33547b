"""Builds with TensorRT for RTX, which needs no GPU for it.

In a process of its own, which a mistake may end: python -m tests.tensorrt.check_rtx <check>
Prints what came of the check, as JSON.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace

import onnx
import torch

from scrd_fast.backends.tensorrt.build import compile_plan
from scrd_fast.backends.tensorrt.flavour import TENSORRT_RTX
from scrd_fast.backends.tensorrt.library import library
from scrd_fast.backends.tensorrt.plan import TensorRtOptions
from scrd_fast.backends.tensorrt.rtx import why_invalid
from scrd_fast.building.ranges import measure_ranges
from scrd_fast.errors import EngineBuildError
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.precision import explicit_graph, scoring_graph
from scrd_fast.graph.quantize import Quantisation, quantise
from scrd_fast.model.scrd import SCRD
from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec
from tests.tensorrt.check_bindings import missing_names
from tests.tensorrt.uses import OBJECTS, RTX_OBJECTS

RTX = library(TENSORRT_RTX)
TARGETS = ("sm86", "sm89", "sm120")
SPEC = ScoringSpec(input_size=64, weighting="scale", blur_sigma=1.5)


class Stop(Exception):
    """A user's."""


def portable() -> onnx.ModelProto:
    torch.manual_seed(3)
    return build_graph(SCRD("resnet18").eval(), SPEC)


def compiled(graph: onnx.ModelProto, progress: Progress = silent, *,
             spec: ScoringSpec = SPEC, targets: Sequence[str] = TARGETS) -> int:
    """Bytes of the plan."""
    return len(compile_plan(RTX, graph, spec, (1, 4), TensorRtOptions(), targets, None, progress))


def check_names() -> list[str]:
    """Names that it has not."""
    return list(missing_names(RTX.trt, ("plugin.py",), OBJECTS, RTX_OBJECTS))


def check_plans() -> dict[str, int]:
    """Every precision, for the targets that compute in it."""
    proto = portable()
    plans = {p: compiled(explicit_graph(proto, SPEC, p)) for p in ("fp32", "fp16", "bf16")}
    chosen = Quantisation(measure_ranges(proto, SPEC, torch.rand(4, 3, 64, 64)))
    for precision, targets in (("int8", TARGETS), ("fp8", ("sm89", "sm120"))):
        graph = quantise(scoring_graph(proto, SPEC), precision, chosen)
        plans[precision] = compiled(graph, targets=targets)
    return plans


def check_invalid() -> list[str | None]:
    """What is said of bytes that are no plan, without a GPU."""
    runtime = RTX.make(RTX.trt.Runtime, RTX.log)
    return [why_invalid(RTX.trt, runtime, data) for data in (b"no plan at all" * 100,)]


def check_failures() -> dict[str, str]:
    """What is said of a graph that does not parse, a build that cannot be, and one that is ended;
    the same process goes on to build."""
    graph = explicit_graph(portable(), SPEC, "fp16")
    unknown = onnx.ModelProto()
    unknown.CopyFrom(graph)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    another = replace(SPEC, input_size=96)  # than the graph's
    said = {}
    for name, proto, spec in (("unknown", unknown, SPEC), ("another", graph, another)):
        try:
            compiled(proto, spec=spec)
        except EngineBuildError as error:
            said[name] = str(error)

    def stop(done: int, total: int, what: str) -> None:
        raise Stop(what)

    try:
        compiled(graph, stop)
    except Stop as error:
        said["stopped"] = str(error)
    return said | {"after": f"{compiled(graph)} bytes"}


def check_interrupt() -> dict[str, bool]:
    """Ctrl-C in the middle of a build, wherever it is then."""
    graph, heard, begun = explicit_graph(portable(), SPEC, "fp16"), False, threading.Event()
    before = signal.default_int_handler  # a shell's background processes ignore Ctrl-C
    signal.signal(signal.SIGINT, before)

    def press() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    try:
        compiled(graph, lambda done, total, what: begun.set())
    except KeyboardInterrupt:
        heard = True
    presser.join()
    return {"heard": heard, "handler is back": signal.getsignal(signal.SIGINT) is before,
            "builds again": compiled(graph) > 0}


def check_export() -> dict[str, list[str]]:
    """The portable graph, any batch of any size, as its ONNX file has it."""
    trt = RTX.trt
    builder = trt.Builder(RTX.log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, RTX.log)
    parser.parse(portable().SerializeToString())
    errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    profile, config = builder.create_optimization_profile(), builder.create_builder_config()
    profile.set_shape("images", (1, 20, 30, 3), (4, 64, 64, 3), (8, 300, 300, 3))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    return {"errors": errors, "outputs": [f"{o.name} {tuple(o.shape)}" for o in outputs],
            "said": RTX.log.errors() if plan is None else []}


CHECKS = {"names": check_names, "invalid": check_invalid, "plans": check_plans,
          "failures": check_failures, "interrupt": check_interrupt, "export": check_export}

if __name__ == "__main__":
    print(json.dumps(CHECKS[sys.argv[1]]()))
