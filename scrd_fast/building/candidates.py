"""Engines in each precision, judged against the reference and timed in turn."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import onnx

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import backend_of, gpu_of, make_runner, native_precisions
from scrd_fast.backends.runner import Runner
from scrd_fast.backends.source import Source
from scrd_fast.backends.tensorrt.plan import TensorRtOptions
from scrd_fast.building.judge import Judge
from scrd_fast.building.ranges import measure_quantisation
from scrd_fast.building.search import search
from scrd_fast.engine.manifest import Attempt, SearchRecord
from scrd_fast.errors import DeviceMemoryError, EngineBuildError, FidelityError, NotFiniteError
from scrd_fast.graph.quantize import BASE, Quantisation
from scrd_fast.machine import why_no_vnni
from scrd_fast.metrics.agreement import LIMITS, Limits, Report, broken_limits
from scrd_fast.precisions import LARGEST, QUANTISED, UNSATURATED
from scrd_fast.progress import Progress
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.measure import random_images, scoring, time_in_turn

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
class Candidate:
    """A runner, its figures, and what it is made of."""

    precision: str
    runner: Runner
    report: Report
    quantisation: Quantisation | None = None
    search: SearchRecord | None = None


@dataclass(frozen=True)
class Candidates:
    """Makes and judges the runners of one checkpoint."""

    source: Source
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

    def _without_vnni(self) -> str | None:
        """Why the backend does without it; None where it does not."""
        return why_no_vnni() if gpu_of(self.backend, self.device) is None else None

    def try_precision(self, precision: str) -> Candidate:
        """A runner with its figures; raises FidelityError where there is none that has any."""
        quantisation, found = None, None
        if precision in QUANTISED:
            quantisation, correction = measure_quantisation(
                self.source.proto, self.judge.spec, self.images, keep=self.keep,
                int8_weight=UNSATURATED if self._without_vnni() else LARGEST["int8"],
                progress=self.progress)
            if precision == "int8" and backend_of(self.backend).searches_layers and (
                    self.keep is None):
                quantisation, found = search(
                    self.backend, self.source, self.judge, quantisation, correction,
                    self.allowed(precision), deadline=self.deadline, progress=self.progress)
            else:
                quantisation = correction.correct(quantisation, precision)
        self.progress(0, 1, f"compiling {self.backend} {precision}")
        runner = self._compiled(precision, quantisation)
        report = report_runner(self.judge, runner, self.source.proto, precision,
                               self.allowed(precision))
        return Candidate(precision, runner, report, quantisation, found)

    def _compiled(self, precision: str, quantisation: Quantisation | None) -> Runner:
        place = gpu_of(self.backend, self.device)
        source = self.source.quantised(quantisation)

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

    def fastest(self, precisions: Sequence[str]) -> tuple[Candidate, list[Attempt]]:
        """Of those that keep the limits, and what became of each precision.

        Beyond the budget none is tried any more, unless none has kept the limits yet.
        """
        best: Candidate | None = None
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
            ms = self._time(*(each for each in (best, made) if each is not None))
            if best is not None:  # what else was timed, as it would be at the present speed
                before, now = attempts[best.precision].ms, ms[best.precision]
                attempts = {name: each if each.ms is None or before is None
                            else replace(each, ms=each.ms / before * now)
                            for name, each in attempts.items()}
            attempts[precision] = Attempt(precision, ms[precision], made.report)
            if best is None or ms[precision] < ms[best.precision]:
                best = made
            del made  # a GPU's memory is for the next one
        if best is None:
            raise FidelityError("no precision keeps the fidelity limits: " + " | ".join(
                each.why_not or "" for each in attempts.values()))
        return best, [explain_slower(each, attempts[best.precision], self._without_vnni())
                      for each in attempts.values()]

    def _attempt(self, precision: str, *, only: bool) -> Candidate | Attempt:
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

    def _time(self, *candidates: Candidate) -> dict[str, float]:
        """Milliseconds per image of each precision, in turn."""
        with ExitStack() as stack:
            calls = {each.precision: scoring(stack.enter_context(closing(each.runner.scorer())))
                     for each in candidates}
            return time_in_turn(calls, random_images(self.judge.spec.input_size))


def report_runner(judge: Judge, runner: Runner, proto: onnx.ModelProto, precision: str,
                  limits: Limits) -> Report:
    """A runner's figures, on as many images as the limits need; proto: its portable graph. Raises
    FidelityError on values that are not finite, naming the layer."""
    from scrd_fast.backends.torch_network import first_nonfinite

    few = not limits.need_ranks()
    with closing(runner.scorer()) as scorer:
        try:
            return judge.report(scorer, few=few)
        except NotFiniteError as error:
            base = BASE if precision in QUANTISED else precision
            layer = first_nonfinite(proto, judge.spec, judge.probe(few).pixels, base)
            where = f", first in layer {layer!r}" if layer else ""
            raise FidelityError(f"{precision}: values that are not finite{where}") from error


def explain_slower(attempt: Attempt, taken: Attempt, reason: str | None) -> Attempt:
    """The attempt, and of 8 bits that were measured slower than what was taken, which nobody
    expects, why it was not taken; reason: what may be behind it."""
    if attempt.precision not in QUANTISED or attempt.ms is None or attempt is taken:
        return attempt
    return replace(attempt, why_not=(
        f"{attempt.precision} was left out: {attempt.ms:.3g} ms an image, {taken.precision} takes"
        f" {taken.ms:.3g}" + (f"; {reason}" if reason else "")))


def list_precisions(backend: str, device: str | None, images: Any) -> list[str]:
    """The precisions that "auto" tries: the quick ones to build first, fastest first.

    images: normal images, without which int8 is left out.
    """
    offered = native_precisions(backend, device)
    tried = images is not None and "int8" in offered and backend_of(backend).tries_int8
    quantised = ["int8"] if tried else []
    return [p for p in offered if p not in QUANTISED] + quantised
