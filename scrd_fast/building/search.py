"""Which layers stay out of 8 bits: as few as keep the fidelity limits.

What decides is that teacher and student are compared with each other: rounding in one of them looks
like an anomaly. Each block is quantised alone first, which tells how much it moves the scores; then
the blocks that move them most stay unquantised, as few as it takes. Candidates run in OpenVINO on
the CPU, whose graph has the quantised nodes of every other backend's.
"""

import re
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import onnx

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import make_runner
from scrd_fast.backends.source import Source
from scrd_fast.building.judge import Judge
from scrd_fast.building.ranges import BiasCorrection
from scrd_fast.engine.manifest import SearchRecord, SearchTry
from scrd_fast.errors import FidelityError, NotFiniteError
from scrd_fast.graph.portable import network_graph
from scrd_fast.graph.quantize import STEM, Quantisation, convolution_names
from scrd_fast.metrics.agreement import Limits, Report, broken_limits
from scrd_fast.progress import Progress
from scrd_fast.timing.measure import random_images, scoring, time_in_turn

_BLOCK = re.compile(
    r"network/(bottleneck|(teacher|student)\.layer\d\.\d+|student\.projections)\.")


def blocks(proto: onnx.ModelProto) -> list[str]:
    """Beginnings of the names of what is kept or quantised together: residual blocks, the
    bottleneck, and the projections of a slim student."""
    found = [_BLOCK.match(name) for name in convolution_names(proto)]
    return list(dict.fromkeys(match.group() for match in found if match))


def search(
    backend: str, source: Source, judge: Judge, quantisation: Quantisation,
    correction: BiasCorrection, limits: Limits, *, deadline: float, progress: Progress,
) -> tuple[Quantisation, SearchRecord]:
    """The quantisation with the fewest kept blocks that keeps the limits in int8, and how it was
    found.

    backend: which compiles the candidates. quantisation: its ranges; nothing else of it is looked
    at. deadline: of time.monotonic, after which the search ends with what it has. Raises
    FidelityError where nothing that was tried keeps the limits.
    """
    return _Searcher(backend, source, judge, quantisation, correction, limits, deadline,
                     progress).run()


class _TimeIsUpError(FidelityError):
    """Nothing more can be tried."""


class _Searcher:
    def __init__(self, backend: str, source: Source, judge: Judge,
                 quantisation: Quantisation, correction: BiasCorrection, limits: Limits,
                 deadline: float, progress: Progress) -> None:
        self.backend = backend
        self.source, self.judge, self.base = source, judge, quantisation
        self.correction = correction
        self.limits, self.deadline, self.progress = limits, deadline, progress
        self.tries: list[SearchTry] = []
        # By the number of kept blocks.
        self.tried: dict[int, Quantisation] = {}
        self.broken: dict[int, list[str]] = {}

    def run(self) -> tuple[Quantisation, SearchRecord]:
        if self._keeps(0, []):
            return self._found(0, {})
        names = blocks(network_graph(self.source.proto, self.judge.spec, features=True))
        errors: dict[str, float] = {}
        for i, name in enumerate(names):
            self.progress(i, len(names), f"int8: what {name.removeprefix('network/')} is off by")
            # Biases as they are: shifts cost more than they would change of the order.
            alone = self._keeping([n for n in names if n != name])
            errors[name] = self._report(alone, few=True)[0].score_error
        order = sorted(names, key=lambda name: -errors[name])
        # Double the number of kept blocks until the limits hold, then halve the last step.
        low, high = 0, 1
        while not self._keeps(high, order):
            if high == len(order):
                raise FidelityError("int8: " + "; ".join(self.broken[high]) + ", every block kept")
            low, high = high, min(2 * high, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            try:
                low, high = (low, middle) if self._keeps(middle, order) else (middle, high)
            except _TimeIsUpError:
                break
        return self._found(high, errors)

    def _found(
        self, count: int, errors: dict[str, float]
    ) -> tuple[Quantisation, SearchRecord]:
        found = self.tried[count]
        return found, SearchRecord(found.keep, errors, tuple(self.tries))

    def _keeping(self, keep: Sequence[str]) -> Quantisation:
        return replace(self.base, keep=(STEM, *keep))

    def _keeps(self, count: int, order: Sequence[str]) -> bool:
        """Whether the limits hold with so many of the blocks kept."""
        self.progress(len(self.tries), len(self.tries) + 1, f"int8: {count} blocks kept")
        chosen = self.correction.correct(self._keeping(order[:count]), "int8")
        report, ms = self._report(chosen, few=False)
        self.tried[count] = chosen
        self.tries.append(SearchTry(chosen.keep, ms, report))
        self.broken[count] = broken_limits(report, self.limits)
        return not self.broken[count]

    def _report(self, chosen: Quantisation, *, few: bool) -> tuple[Report, float]:
        if time.monotonic() > self.deadline:
            raise _TimeIsUpError(f"int8: no time left after {len(self.tries)} tries")
        spec = self.judge.spec
        runner = make_runner(self.backend, CompileRequest(
            self.source.quantised(chosen), spec, "int8", (1,)))
        with closing(runner.scorer()) as scorer:
            try:
                report = self.judge.report(scorer, few=few)
            except NotFiniteError as error:
                raise FidelityError("int8: values that are not finite") from error
            ms = 0.0 if few else time_in_turn(
                {"": scoring(scorer)}, random_images(spec.input_size))[""]
        return report, ms
