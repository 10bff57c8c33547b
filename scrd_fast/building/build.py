"""build_engine, export_onnx: from a checkpoint to an engine file, judged before it is written."""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import (
    backend_of,
    check_precision,
    choose_backend,
    gpu_of,
    make_runner,
    native_precisions,
)
from scrd_fast.backends.runner import Runner
from scrd_fast.backends.source import Source
from scrd_fast.backends.tensorrt.plan import TensorRtOptions
from scrd_fast.bench.timing import random_images, scoring, time_in_turn
from scrd_fast.building.judge import Judge
from scrd_fast.building.ranges import BiasCorrection, measure_ranges, range_pixels
from scrd_fast.building.record import record
from scrd_fast.building.search import search
from scrd_fast.building.work import count_work
from scrd_fast.data.images import is_paths, read_images
from scrd_fast.engine import current as _current
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import (
    GOLDEN,
    NETWORK,
    listing,
    read_engine_file,
    write_engine_file,
)
from scrd_fast.engine.golden import check_same_scores
from scrd_fast.engine.manifest import (
    LARGEST_BATCH,
    MOST_BUCKETS,
    Attempt,
    Fidelity,
    Manifest,
    Model,
    SearchRecord,
    are_buckets,
)
from scrd_fast.errors import (
    DeviceMemoryError,
    EngineBuildError,
    EngineFileError,
    FidelityError,
    NotFiniteError,
    expect,
)
from scrd_fast.files import as_path, atomic_write, check_writable
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.quantize import BASE, KEEP, Quantisation
from scrd_fast.graph.stored import QUANTISATION
from scrd_fast.machine import this_machine
from scrd_fast.metrics.agreement import LIMITS, Limits, Report, broken_limits
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.precisions import QUANTISED
from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec
from scrd_fast.torch_state import own_state

BATCH = 8
GPU_BUCKETS = (1, 8, 32)


def _faster_in_batches(runner: Runner, spec: ScoringSpec) -> bool:
    """Whether a batch of BATCH costs less than its images one by one, by at least 5 %."""
    (together,) = random_images(spec.input_size, 1, BATCH)
    with closing(runner.scorer()) as scorer:
        score = scoring(scorer, maps=False)
        ms = time_in_turn({"together": score, "one by one": lambda batch: [
            score(batch[i : i + 1]) for i in range(BATCH)]}, [together], rounds=3, warmup=1)
    return ms["together"] < 0.95 * ms["one by one"]


@dataclass(frozen=True)
class _Candidate:
    """A runner, its figures, and what it is made of."""

    precision: str
    runner: Runner
    report: Report
    quantisation: Quantisation | None = None
    search: SearchRecord | None = None


@dataclass(frozen=True)
class _Builder:
    """Makes and judges the runners of one checkpoint."""

    proto: onnx.ModelProto
    backend: str
    device: str | None
    buckets: tuple[int, ...] | None
    images: Any
    limits: Limits | None
    options: TensorRtOptions | None
    keep: tuple[str, ...] | None
    budget: float
    progress: Progress
    judge: Judge
    deadline: float  # time.monotonic() at which the budget is spent

    def allowed(self, precision: str) -> Limits:
        return self.limits or LIMITS[precision]

    def try_precision(self, precision: str) -> _Candidate:
        """A runner with its figures; raises FidelityError where there is none that has any."""
        quantisation, found = None, None
        if precision in QUANTISED:
            pixels = range_pixels(self.judge.spec, self.images)
            ranges = measure_ranges(self.proto, self.judge.spec, pixels, progress=self.progress)
            quantisation = Quantisation(ranges, KEEP if self.keep is None else self.keep)
            correction = BiasCorrection(self.proto, self.judge.spec, pixels)
            if precision == "int8" and backend_of(self.backend).searches_layers and (
                    self.keep is None):
                quantisation, found = search(
                    self.backend, self.proto, self.judge, quantisation, correction,
                    self.allowed(precision), deadline=self.deadline, progress=self.progress)
            else:
                quantisation = correction.correct(quantisation, precision)
        self.progress(0, 1, f"compiling {self.backend} {precision}")
        runner = self._compiled(precision, quantisation)
        report = self._report(runner, precision)
        return _Candidate(precision, runner, report, quantisation, found)

    def _compiled(self, precision: str, quantisation: Quantisation | None) -> Runner:
        place = gpu_of(self.backend, self.device)
        source = Source.of(self.proto, quantisation)

        def make(buckets: tuple[int, ...]) -> Runner:
            return make_runner(self.backend, CompileRequest(
                source, self.judge.spec, precision, buckets, device=place,
                options=self.options, progress=self.progress))

        on_gpu = place is not None
        runner = make(self.buckets or (GPU_BUCKETS if on_gpu else (1, BATCH)))
        if self.buckets is None and not on_gpu and not _faster_in_batches(
                runner, self.judge.spec):
            runner = make((1,))
        return runner

    def _report(self, runner: Runner, precision: str) -> Report:
        """Raises FidelityError on values that are not finite, naming the layer."""
        from scrd_fast.backends.torch_network import first_nonfinite

        few = not self.allowed(precision).need_ranks()
        with closing(runner.scorer()) as scorer:
            try:
                return self.judge.report(scorer, few=few)
            except NotFiniteError as error:
                base = BASE if precision in QUANTISED else precision
                pixels = self.judge.probe(few).pixels
                layer = first_nonfinite(self.proto, self.judge.spec, pixels, base)
                where = f", first in layer {layer!r}" if layer else ""
                raise FidelityError(f"{precision}: values that are not finite{where}") from error

    def fastest(self, precisions: Sequence[str]) -> tuple[_Candidate, list[Attempt]]:
        """Of those that keep the limits, and what became of each precision.

        Beyond the budget none is tried any more, unless none has kept the limits yet.
        """
        best: _Candidate | None = None
        attempts: dict[str, Attempt] = {}
        for precision in precisions:
            if best is not None and time.monotonic() > self.deadline:
                attempts[precision] = Attempt(
                    precision, why_not=f"not tried: the budget of {self.budget:g} s is spent")
                continue
            made = self._attempt(precision, only=len(precisions) == 1)
            if isinstance(made, Attempt):
                attempts[precision] = made
                continue
            attempts[precision] = Attempt(precision, report=made.report)
            ms = self._time(*(each for each in (best, made) if each is not None))
            for name, figure in ms.items():
                attempts[name] = replace(attempts[name], ms=figure)
            if best is None or ms[precision] < ms[best.precision]:
                best = made
            del made  # a GPU's memory is for the next one
        if best is None:
            raise FidelityError("no precision keeps the fidelity limits: " + " | ".join(
                each.why_not or "" for each in attempts.values()))
        return best, list(attempts.values())

    def _attempt(self, precision: str, *, only: bool) -> _Candidate | Attempt:
        """A candidate that keeps the limits, or why there is none; only: no other will be tried,
        so errors that are none of fidelity are raised."""
        try:
            made = self.try_precision(precision)
        except FidelityError as error:
            return Attempt(precision, why_not=str(error))
        except (DeviceMemoryError, EngineBuildError, NotFiniteError) as error:
            if only:
                raise
            return Attempt(precision, why_not=f"{precision}: {error}")
        if broken := broken_limits(made.report, self.allowed(precision)):
            return Attempt(precision, report=made.report,
                           why_not=f"{precision}: " + "; ".join(broken))
        return made

    def _time(self, *candidates: _Candidate) -> dict[str, float]:
        """Milliseconds per image of each precision, in turn."""
        with ExitStack() as stack:
            calls = {each.precision: scoring(stack.enter_context(closing(each.runner.scorer())))
                     for each in candidates}
            return time_in_turn(calls, random_images(self.judge.spec.input_size))


def _tried(backend: str, device: str | None, images: Any) -> list[str]:
    """The precisions of "auto": the quick ones to build first, fastest first."""
    offered = native_precisions(backend, device)
    quantised = ["int8"] if images is not None and "int8" in offered else []
    return [p for p in offered if p not in QUANTISED] + quantised


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
    beside it by default. backend: "auto", or one of backends.registry.BACKENDS.
    precision: "fp32", "bf16", "fp16" (on a GPU), "int8" or "fp8" (TensorRT; 8 bits need `images` to
    calibrate on), or "auto": of those that the machine computes in natively, int8 with `images`
    included and fp8 not, the fastest that keeps the fidelity limits, as measured here. In int8 on
    CPUs the layers that must not be quantised are searched for (building.search). device: "cpu",
    "cuda" or "cuda:<index>"; by default a GPU where one can be used. images: normal images (array,
    folder or paths) to calibrate and to judge fidelity on, which are not kept. buckets: batch sizes
    rising from 1, each compiled on its own; by default 1, 8 and 32 on a GPU, else single images,
    and batches of 8 where those are measured to be faster. On a GPU a batch between two buckets is
    padded, and a bucket that does not fit into its memory is left out with a warning. limits:
    fidelity limits instead of the table's (metrics.agreement). keep: beginnings of the names of the
    convolutions that 8 bits leave out, instead of searching for them; an earlier search's are in
    the manifest. tensorrt: how a plan is built. budget: seconds after which no further precision is
    tried and a search is given up. progress: called with (done, total, what).

    Where `out` is a calibrated engine of the same model whose scores the new one gives, within the
    fidelity limits of both, its calibration is kept; else a warning tells why it was dropped.
    Raises CheckpointError, BackendUnavailable, DeviceMemoryError, EngineBuildError, FidelityError
    (with the figures), OutputError.
    """
    expect(buckets is None or are_buckets(buckets), "buckets",
           f"at most {MOST_BUCKETS} integers that rise from 1 to {LARGEST_BATCH} at most", buckets)
    name = choose_backend(backend, device)
    check_precision(name, precision, device)
    path = as_path(checkpoint, "checkpoint")
    target = path.with_suffix(".scrd") if out is None else as_path(out, "out")
    check_writable(target, "out", inputs=[path])
    loaded = load_checkpoint(path)
    probe_images = read_images(images) if is_paths(images) else images
    proto = build_graph(loaded.model, loaded.spec)

    expect(probe_images is not None or precision not in QUANTISED, "images",
           f"normal images to calibrate {precision} on", "none")
    expect(budget > 0, "budget", "seconds above 0", budget)
    builder = _Builder(
        proto, name, device, buckets, probe_images, limits, tensorrt,
        None if keep is None else tuple(keep), budget, progress,
        Judge(loaded, probe_images, progress), time.monotonic() + budget)
    try:
        best, attempts = builder.fastest(
            [precision] if precision != "auto" else _tried(name, device, probe_images))
    except FidelityError as error:
        raise FidelityError(f"{path}: {error}") from error
    runner = best.runner

    golden = record(loaded, runner, progress)
    spec = loaded.spec
    manifest = Manifest(
        spec=spec,
        model=Model(loaded.config.backbone, loaded.config.teacher),
        backend=name,
        precision=best.precision,
        precision_used=runner.precision_used(),
        buckets=runner.buckets,
        machine=this_machine(gpu_of(name, device)),
        versions=library_versions(name, runner),
        fidelity=Fidelity(
            probe="images" if images is not None else "golden", report=best.report,
            limits=builder.allowed(best.precision), candidates=tuple(attempts),
            search=best.search),
        work=count_work(proto, spec, best.quantisation),
        plan=backend_of(name).ties(runner.version, tensorrt),
        calibration=_calibration_of(target, golden, best.precision),
    )
    members = {NETWORK: proto.SerializeToString(), GOLDEN: golden}
    if best.quantisation is not None:
        members[QUANTISATION] = best.quantisation.to_bytes()
    written = write_built(target, manifest, members, runner)
    return _current.use(Engine(written, runner, target, device=device))


def library_versions(backend: str, runner: Runner) -> dict[str, str]:
    """Of what an engine was built with, for its manifest."""
    return {"torch": str(torch.__version__), "onnx": onnx.__version__, backend: runner.version}


def _calibration_of(path: Path, golden: bytes, precision: str) -> Decisions | None:
    """The calibration of the engine file that a new one is about to replace, where it holds for the
    new one, too, else None, with a warning where there was one."""
    try:
        old, members = read_engine_file(path)
        if old.calibration is None:
            return None
    except EngineFileError:  # nothing there, or nothing that anybody could have used
        return None
    try:
        check_same_scores(members.get(GOLDEN, b""), golden, (old.precision, precision))
    except (EngineFileError, FidelityError) as error:
        warnings.warn(f"{path}: the calibration of the engine that was there is dropped: {error};"
                      f" calibrate again with: scrd-fast calibrate {path} NORMALS", stacklevel=4)
        return None
    return old.calibration


def write_built(
    path: Path, manifest: Manifest, members: Mapping[str, bytes], runner: Runner
) -> Manifest:
    """Write an engine file with what its runner compiled, which is then known as this user's;
    returns the manifest as written. Raises OutputError."""
    everything = {**members, **runner.compiled}
    if runner.compiled:  # before: without its record the file could not be loaded
        backend_of(manifest.backend).remember(runner.compiled)
    write_engine_file(path, manifest, everything)
    return listing(manifest, everything)


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

