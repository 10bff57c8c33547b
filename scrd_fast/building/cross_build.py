"""cross_build: from a checkpoint to an engine file for GPUs that are not here."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scrd_fast.backends.backend import CompileRequest, CrossCompiled
from scrd_fast.backends.registry import choose_cross_compiler
from scrd_fast.backends.runner import Runner
from scrd_fast.backends.tensorrt.plan import TensorRtOptions
from scrd_fast.backends.torch_eager import network_runner
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.building.build import write_engine
from scrd_fast.building.candidates import BATCH, GPU_BUCKETS, Candidate, report_runner
from scrd_fast.building.inputs import Inputs, read_inputs
from scrd_fast.building.ranges import measure_quantisation
from scrd_fast.engine.manifest import (
    LARGEST_BATCH,
    MOST_BUCKETS,
    Attempt,
    Fidelity,
    are_buckets,
)
from scrd_fast.errors import FidelityError, expect
from scrd_fast.graph.portable import network_graph
from scrd_fast.graph.precision import in_precision
from scrd_fast.graph.quantize import BASE, Quantisation, quantise
from scrd_fast.machine import this_machine
from scrd_fast.metrics.agreement import LIMITS, Limits, broken_limits
from scrd_fast.precisions import LARGEST, PRECISIONS, QUANTISED
from scrd_fast.progress import Progress, silent
from scrd_fast.torch_state import own_state

# What "auto" tries: all targets compute in fp16 at full speed, and bf16 and fp32 are for what
# overflows in it. 8 bits are asked for by name, as nothing here tells whether they are faster.
_TRIED = ("fp16", "bf16", "fp32")


@own_state()
def cross_build(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    targets: Sequence[str],
    backend: str = "auto",
    precision: str = "auto",
    images: Any = None,
    buckets: tuple[int, ...] = GPU_BUCKETS,
    limits: Limits | None = None,
    keep: Sequence[str] | None = None,
    tensorrt: TensorRtOptions | None = None,
    progress: Progress = silent,
) -> Path:
    """Compile a checkpoint into one engine file for GPUs that need not be here.

    targets: names of their generations, such as ("sm86", "sm89", "sm120"), all of which run the
    same file; backend: one that compiles for other machines, as TensorRT for RTX does. precision:
    "auto" is fp16, or bf16 or fp32 where fp16 does not keep the fidelity limits; int8 and fp8 (from
    sm89 on) need `images`. The rest is as in `build_engine`. What is judged here is the precision's
    arithmetic, computed in float32 on the CPU and rounded after each operation. So the file says
    that it was not judged on a GPU, and the first time that it is loaded on one it has to reproduce
    its golden images. Returns the engine file's path.

    Raises CheckpointError, BackendUnavailable, EngineBuildError, FidelityError (with the figures),
    InputError, OutputError.
    """
    options = tensorrt or TensorRtOptions()
    choices = ("auto", *PRECISIONS)
    expect(precision in choices, "precision", f"one of {choices}", repr(precision))
    expect(are_buckets(buckets), "buckets",
           f"at most {MOST_BUCKETS} integers that rise from 1 to {LARGEST_BATCH} at most", buckets)
    compiler = choose_cross_compiler(backend)
    targets = tuple(targets) if not isinstance(targets, str) else (targets,)
    compiler.check_targets(targets, precision, options)
    inputs = read_inputs(checkpoint, out, images, precision, progress)
    try:
        judged, attempts = _first_good(
            inputs, [precision] if precision != "auto" else _TRIED, limits, keep, progress)
    except FidelityError as error:
        raise FidelityError(f"{inputs.path}: {error}") from error
    progress(0, 1, f"compiling {compiler.name} {judged.precision} for {', '.join(targets)}")
    made = compiler.cross_compile(CompileRequest(
        inputs.source.quantised(judged.quantisation), inputs.checkpoint.spec, judged.precision,
        buckets, options=options, progress=progress), targets)
    write_engine(
        inputs, replace(judged, runner=_as_compiled(judged.runner, compiler.name, buckets, made)),
        Fidelity(inputs.probe, judged.report, limits or LIMITS[judged.precision], tuple(attempts),
                 emulated=True),
        machine=this_machine(), plan=made.ties, progress=progress)
    return inputs.target


def _first_good(
    inputs: Inputs, precisions: Sequence[str], limits: Limits | None, keep: Sequence[str] | None,
    progress: Progress,
) -> tuple[Candidate, list[Attempt]]:
    """The emulation of the first precision that keeps the limits, and what became of each; raises
    FidelityError where none does."""
    spec, attempts = inputs.checkpoint.spec, []
    for precision in precisions:
        allowed, quantisation = limits or LIMITS[precision], None
        try:
            if precision in QUANTISED:
                quantisation, correction = measure_quantisation(
                    inputs.source.proto, spec, inputs.images, keep=keep,
                    int8_weight=LARGEST["int8"], progress=progress)
                quantisation = correction.correct(quantisation, precision)
            runner = _emulation(inputs, precision, quantisation)
            report = report_runner(inputs.judge, runner, inputs.source.proto, precision, allowed)
        except FidelityError as error:  # a weight or a value that does not fit
            attempts.append(Attempt(precision, why_not=str(error)))
            continue
        broken = broken_limits(report, allowed)
        why_not = f"{precision}: {'; '.join(broken)}" if broken else None
        attempts.append(Attempt(precision, report=report, why_not=why_not))
        if not broken:
            return Candidate(precision, runner, report, quantisation), attempts
    raise FidelityError("no precision keeps the fidelity limits: " + " | ".join(
        each.why_not or "" for each in attempts))


def _emulation(inputs: Inputs, precision: str, quantisation: Quantisation | None) -> Runner:
    """Computes on the CPU what a GPU computes in a precision."""
    spec = inputs.checkpoint.spec
    graph = network_graph(inputs.source.proto, spec)
    if quantisation is None:
        network = TorchNetwork(in_precision(graph, precision), precision, emulate=True)
    else:
        network = TorchNetwork(quantise(graph, precision, quantisation), BASE, emulate=True)
    return network_runner("emulation", network, spec, (1, BATCH))


def _as_compiled(
    emulation: Runner, backend: str, buckets: tuple[int, ...], made: CrossCompiled
) -> Runner:
    """What was compiled; what it gives is the emulation's."""
    return replace(emulation, name=backend, version=made.version, buckets=buckets,
                   precision_used=lambda: dict(made.precision_used), compiled=made.members)
