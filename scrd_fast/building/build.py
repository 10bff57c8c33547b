"""build_engine, export_onnx: from a checkpoint to an engine file, judged before it is written."""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx
import torch

from scrd_fast.backends.registry import backend_of, check_precision, choose_backend, gpu_of
from scrd_fast.backends.runner import Runner
from scrd_fast.backends.tensorrt.plan import PlanTies, TensorRtOptions
from scrd_fast.building.candidates import Candidate, Candidates, list_precisions
from scrd_fast.building.golden_member import make_golden
from scrd_fast.building.inputs import Inputs, read_inputs
from scrd_fast.building.work import count_work
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import GOLDEN, NETWORK, open_checked, write_listed
from scrd_fast.engine.golden import check_same_scores
from scrd_fast.engine.manifest import (
    LARGEST_BATCH,
    MOST_BUCKETS,
    Fidelity,
    Manifest,
    Model,
    Training,
    are_buckets,
)
from scrd_fast.errors import EngineFileError, FidelityError, expect
from scrd_fast.files import Contents, as_path, atomic_write, check_writable
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.machine import Machine, this_machine
from scrd_fast.metrics.agreement import Limits
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.model.checkpoint import Checkpoint, load_checkpoint
from scrd_fast.progress import Progress, silent
from scrd_fast.torch_state import own_state


@own_state()
def build_engine(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    backend: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    images: Any = None,
    buckets: tuple[int, ...] | None = None,
    limits: Limits | None = None,
    keep: Sequence[str] | None = None,
    tensorrt: TensorRtOptions | None = None,
    budget: float = 600.0,
    progress: Progress = silent,
) -> Engine:
    """Compile a checkpoint into one engine file for this machine, and load it.

    checkpoint: a .safetensors file of this package. out: the engine file, `<checkpoint>.scrd`
    beside it by default. backend: "auto", or one of backends.registry.BACKENDS. precision: "fp32",
    "bf16", "fp16" (on a GPU), "int8" or "fp8" (TensorRT; 8 bits need `images` to calibrate on), or
    "auto": of those that the machine computes in natively, int8 with `images` included and fp8 not,
    the fastest that keeps the fidelity limits, as measured here. In int8 on CPUs the layers that
    must not be quantised are searched for (building.search). device: "cpu", "cuda" or
    "cuda:<index>"; by default a GPU where one can be used. images: normal images (array, folder,
    data set or paths) to calibrate and to judge fidelity on, which are not kept. buckets: batch
    sizes rising from 1, each compiled on its own; by default 1, 8 and 32 on a GPU, else single
    images, and batches of 8 where those are measured to be faster. On a GPU a batch between two
    buckets is padded, and a bucket that does not fit into its memory is left out with a warning.
    limits: fidelity limits instead of the table's (metrics.agreement). keep: beginnings of the
    names of the convolutions that 8 bits leave out, instead of searching for them; an earlier
    search's are in the manifest. tensorrt: how a plan is built. budget: seconds after which no
    further precision is tried and a search is given up. progress: called with (done, total, what).

    Where `out` is a calibrated engine of the same model whose scores the new one gives, within the
    fidelity limits of both, its calibration is kept; else a warning tells why it was dropped.
    Raises CheckpointError, BackendUnavailable, DeviceMemoryError, EngineBuildError, FidelityError
    (with the figures), OutputError.
    """
    expect(buckets is None or are_buckets(buckets), "buckets",
           f"at most {MOST_BUCKETS} integers that rise from 1 to {LARGEST_BATCH} at most", buckets)
    name = choose_backend(backend, device)
    check_precision(name, precision, device)
    inputs = read_inputs(checkpoint, out, images, precision, progress)
    expect(budget > 0, "budget", "seconds above 0", budget)
    builder = Candidates(
        inputs.source, name, device, buckets, inputs.images, limits, tensorrt,
        None if keep is None else tuple(keep), budget, progress,
        inputs.judge, time.monotonic() + budget)
    try:
        best, attempts = builder.fastest(
            [precision] if precision != "auto" else list_precisions(name, device, inputs.images))
    except FidelityError as error:
        raise FidelityError(f"{inputs.path}: {error}") from error
    place = gpu_of(name, device)
    written = write_engine(
        inputs, best, Fidelity(inputs.probe, best.report, builder.allowed(best.precision),
                               tuple(attempts), best.search),
        machine=this_machine(place), progress=progress,
        plan=backend_of(name).ties(best.runner.version, tensorrt, place))
    return _current.use(Engine(written, best.runner, inputs.target, device=device))


def write_engine(
    inputs: Inputs, best: Candidate, fidelity: Fidelity, *, machine: Machine,
    plan: PlanTies | None, progress: Progress,
) -> Manifest:
    """Write the engine file of a runner, for a public function that own_state decorates; returns
    its manifest.

    machine, plan: what was compiled is tied to. Raises OutputError.
    """
    loaded, runner = inputs.checkpoint, best.runner
    golden = make_golden(loaded, runner, inputs.judge.golden, progress)
    manifest = Manifest(
        spec=loaded.spec,
        model=Model(**asdict(loaded.config)),
        backend=runner.name,
        precision=best.precision,
        precision_used=runner.precision_used(),
        buckets=runner.buckets,
        machine=machine,
        versions=library_versions(runner.name, runner),
        fidelity=fidelity,
        work=count_work(inputs.source.proto, loaded.spec, best.quantisation),
        training=_describe_training(loaded),
        plan=plan,
        calibration=_calibration_of(inputs.target, golden, best.precision),
    )
    members = {NETWORK: inputs.source.network, GOLDEN: golden}
    if best.quantisation is not None:
        members[QUANTISATION] = best.quantisation.to_bytes()
    return write_built(inputs.target, manifest, members, runner)


def _describe_training(checkpoint: Checkpoint) -> Training | None:
    """For the manifest; None of a model that was not trained by this package."""
    if not checkpoint.training:
        return None
    options, metrics = _flatten(checkpoint.training), checkpoint.metrics
    # An engine travels: the name of the teacher's file goes along, its place does not.
    options["teacher"] = os.path.basename(str(options.get("teacher")))
    figures = {name: float(value) for name, value in metrics.items() if type(value) is float}
    return Training(options, figures, metrics.get("images", {}))


def _flatten(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by name, those of an option that has some as "noise.strength"."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            several = isinstance(value, list)
            flat[prefix + name] = ", ".join(map(str, value)) if several else value
    return flat


def library_versions(backend: str, runner: Runner) -> dict[str, str]:
    """The libraries that an engine was built with, for its manifest."""
    return {"torch": str(torch.__version__), "onnx": onnx.__version__, backend: runner.version}


def _calibration_of(path: Path, golden: bytes, precision: str) -> Decisions | None:
    """The calibration of the engine file that a new one is about to replace, where it holds for the
    new one, too, else None, with a warning where there was one."""
    try:
        file = open_checked(path)
        old, members = file.manifest, file.members
        if old.calibration is None:
            return None
    except EngineFileError:  # nothing there, or nothing that anybody could have used
        return None
    try:
        check_same_scores(members.get(GOLDEN, b""), golden, (old.precision, precision))
    except (EngineFileError, FidelityError) as error:
        warnings.warn(f"{path}: the calibration of the engine that was there is dropped: {error};"
                      f" calibrate again with: scrd-fast calibrate {path} NORMALS",
                      stacklevel=5)
        return None
    return old.calibration


def write_built(
    path: Path, manifest: Manifest, members: Mapping[str, Contents], runner: Runner
) -> Manifest:
    """Write an engine file with what its runner compiled, which is then known as this user's;
    returns the manifest as written. Raises OutputError."""
    everything: dict[str, Contents] = {**members, **runner.compiled}
    if runner.compiled:  # before: without its record the file could not be loaded
        backend_of(manifest.backend).remember(runner.compiled)
    return write_listed(path, manifest, everything)


@own_state()
def export_onnx(checkpoint: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the portable ONNX graph of a checkpoint (see graph.portable.build_graph)."""
    source, target = as_path(checkpoint, "checkpoint"), as_path(out, "out")
    expect(target.suffix == ".onnx", "out", "a file name ending in .onnx", repr(str(target)))
    check_writable(target, "out", inputs=[source])
    loaded = load_checkpoint(source)
    data = build_graph(loaded.model, loaded.spec).SerializeToString()
    with atomic_write(target) as temporary:
        temporary.write_bytes(data)
    return target

