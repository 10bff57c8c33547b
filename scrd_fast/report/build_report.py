"""What a build tried and measured: tables, and plots of score error against latency."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from scrd_fast.engine.engine_file import open_checked
from scrd_fast.engine.manifest import Manifest
from scrd_fast.metrics.agreement import Report
from scrd_fast.report.templates import Table, check_jinja2, write_page

_FIGURES = ("score_error", "map_error", "rank_correlation", "auroc_change", "flipped")
_HEADER = ("ms per image", "score error", "map error", "rank correlation", "AUROC change",
           "flipped decisions")
WIDTH, HEIGHT = 460, 340  # of a plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 24, 16, 52
_MARGIN = 0.14  # of the span of the points, around them


def write_build_report(engine: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the page for an engine file; needs jinja2 (`pip install scrd-fast[report]`).

    Raises EngineFileError, OutputError, MissingExtra where jinja2 is not installed.
    """
    check_jinja2()
    manifest = open_checked(engine).manifest
    write_page(out, "build.html", title=os.path.basename(engine), summary=summarise(manifest),
               tables=list_tables(manifest), plots=list_plots(manifest))


def summarise(manifest: Manifest) -> str:
    """What was built, on what, and what it was held to."""
    fidelity = manifest.fidelity
    limits = ", ".join(f"{name.replace('_', ' ')} {value:g}"
                       for name, value in asdict(fidelity.limits).items() if value is not None)
    plan, emulated = manifest.plan, ""
    if fidelity.emulated and plan is not None:
        emulated = (f" for {', '.join(plan.targets)}, judged by the precision's arithmetic and not"
                    " on a GPU")
    return (f"{manifest.model.network}, {manifest.backend} {manifest.precision}; limits:"
            f" {limits or 'none'}; probe set: {fidelity.probe}, {fidelity.report.images} images;"
            f" built on {manifest.machine.cpu}{emulated}")


def list_tables(manifest: Manifest) -> list[Table]:
    """The precisions that were tried, and the search for layers that stay out of int8."""
    fidelity = manifest.fidelity
    rows = [(row.precision, row.ms, *_figures(row.report), row.why_not)
            for row in fidelity.candidates]
    tables = [Table("Precisions that were tried", ("precision", *_HEADER, "not taken because"),
                    rows, frozenset(i for i, row in enumerate(fidelity.candidates)
                                    if row.precision == manifest.precision))]
    search = fidelity.search
    if search is not None:
        tries = [(len(each.keep), each.ms, *_figures(each.report),
                  each.keep[-1].removeprefix("network/") if each.keep else None)
                 for each in search.tries]
        tables.append(Table(
            "Search for the layers that stay out of int8", ("kept", *_HEADER, "last kept"), tries,
            frozenset(i for i, each in enumerate(search.tries) if each.keep == search.keep)))
        if search.sensitivities:
            by_error = sorted(search.sensitivities.items(), key=lambda each: -each[1])
            tables.append(Table("Score error with one block alone in int8",
                                ("block", "score error"), by_error))
    return tables


def _figures(report: Report | None) -> list[float | None]:
    return [None if report is None else getattr(report, name) for name in _FIGURES]


@dataclass(frozen=True)
class Tick:
    """A mark of an axis, and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """A point in the units of the picture, its name and what it stands for."""

    x: float
    y: float
    name: str
    text: str


@dataclass(frozen=True)
class Plot:
    """Score error against latency, ready to draw: WIDTH x HEIGHT."""

    title: str
    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def list_plots(manifest: Manifest) -> list[Plot]:
    """A plot of the precisions that keep the limits, with a logarithmic scale of errors, and one of
    the search, where there are such."""
    fidelity = manifest.fidelity
    precisions = [(row.ms, row.report.score_error, row.precision)
                  for row in fidelity.candidates if row.ms is not None and row.report is not None]
    tries = [(each.ms, each.report.score_error, str(len(each.keep)))
             for each in (() if fidelity.search is None else fidelity.search.tries)]
    return [_draw(title, points, log)
            for title, points, log in (("Precisions that keep the limits", precisions, True),
                                       ("int8, by the number of names kept", tries, False))
            if points]


def _draw(title: str, points: Sequence[tuple[float, float, str]], log: bool) -> Plot:
    log = log and all(y > 0 for _, y, _ in points)
    x_axis = _Axis([x for x, _, _ in points], _LEFT, WIDTH - _RIGHT, False)
    y_axis = _Axis([y for _, y, _ in points], HEIGHT - _BOTTOM, _TOP, log)
    return Plot(title, tuple(
        Point(x_axis.place(x), y_axis.place(y), name,
              f"{name}: {x:.4g} ms per image, score error {y:.3g}") for x, y, name in points),
        tuple(x_axis.ticks()), tuple(y_axis.ticks()))


class _Axis:
    """From values to places between `start` and `end`."""

    def __init__(self, values: Sequence[float], start: float, end: float, log: bool) -> None:
        self._log, self._start, self._end = log, start, end
        low, high = (self._scaled(each) for each in (min(values), max(values)))
        around = (high - low) * _MARGIN or (0.5 if log else abs(high) * 0.5 or 1.0)
        self._low, self._high = low - around, high + around

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def place(self, value: float) -> float:
        share = (self._scaled(value) - self._low) / (self._high - self._low)
        return round(self._start + share * (self._end - self._start), 2)

    def ticks(self) -> Iterator[Tick]:
        for value in (self._powers() if self._log else self._steps()):
            yield Tick(self.place(value), f"{value:.3g}")

    def _steps(self) -> list[float]:
        """Multiples of 1, 2 or 5 times a power of ten, four to nine of them."""
        rough = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(each * power for each in (1, 2, 5, 10) if each * power >= rough)
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        return [i * step for i in range(first, last + 1)]

    def _powers(self) -> list[float]:
        """Powers of ten, and where these are few their multiples, too."""
        powers = range(math.floor(self._low), math.ceil(self._high) + 1)
        for factors in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            found = [f * 10.0**p for p in powers for f in factors
                     if self._low <= math.log10(f * 10.0**p) <= self._high]
            if len(found) >= 3:
                break
        return found[:: max(1, len(found) // 8)]
