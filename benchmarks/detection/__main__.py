"""How well anomalies are found: python -m benchmarks.detection

Fits every method on every source of normal images with seeds 0, 1 and 2, scores every test set and
stores a row for each. A row that is there is not computed again: after a stop the same command goes
on, and a further method or data set costs its own time alone. --page puts the stored rows into
docs/detection.md.

All steps are scaled by a budget, so that everything fits into three hours here; rows that are
stored set the budget of those to come. --only chooses fits by SOURCE/SEED/METHOD, as shells choose
files: --only 'brain/*/ours*' (again for more).
"""

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch

from benchmarks.detection.data_sets import (
    DATA_SETS,
    SOURCES,
    Normals,
    Tested,
    of_source,
    quick_side,
)
from benchmarks.detection.methods import METHODS, Fitted, Job, Method, scaled
from benchmarks.detection.page import write_page
from benchmarks.detection.rows import (
    Row,
    figures_of,
    find_row,
    kind_figures,
    now,
    read_rows,
    rounded,
    store_row,
    subject_runs,
)
from benchmarks.detection.teachers import Teachers
from benchmarks.results import commit
from benchmarks.timing import Others
from scrd_fast import demo
from scrd_fast.data.demo_brain import SIZE
from scrd_fast.progress import duration
from scrd_fast.timing.bench import environment

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "detection.md"
RESULTS = ROOT / "benchmarks" / "results" / "detection"
WORK = ROOT / "build" / "detection"
SEEDS = (0, 1, 2)
MOST_HOURS = 3
BUDGETS = (1.0, 0.7, 0.5, 0.35, 0.25)
QUICK_BUDGET = 1e-9  # two steps of everything


@dataclass(frozen=True)
class Unit:
    """A method to be fitted, and the test sets that lack its row."""

    source: str
    seed: int
    name: str
    data_sets: tuple[str, ...]

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    def is_one_of(self, patterns: Sequence[str]) -> bool:
        """Whether a pattern is of its SOURCE/SEED/METHOD."""
        return any(fnmatchcase(f"{self.source}/{self.seed}/{self.name}", each)
                   for each in patterns)


class Bench:
    """What is to be done, and doing it. Files of teachers and models lie in `work`, rows in
    `results`; pace: of this machine; only: patterns of the units that are done."""

    def __init__(self, work: Path, results: Path, budget: float, pace: demo.Pace, *,
                 quick: bool = False, only: Sequence[str] = ("*",)) -> None:
        self.work, self.results, self.budget, self.quick = work, results, budget, quick
        self.pace, self.only = pace, only
        self.seeds = SEEDS[:1] if quick else SEEDS
        self.commit = commit()

    def side(self, source: str) -> int:
        return quick_side(source) if self.quick else SOURCES[source].side

    def units(self) -> list[Unit]:
        """What is not stored yet, in the order in which it is done."""
        rows, found = read_rows(self.results), []
        for source, each in SOURCES.items():
            if each.missing():
                continue
            for seed in self.seeds:
                for name, method in METHODS.items():
                    settings = method.settings(self.side(source), self.budget)
                    lacking = tuple(data_set for data_set in of_source(source) if find_row(
                        rows, data_set, name, seed, settings) is None)
                    unit = Unit(source, seed, name, lacking)
                    if lacking and unit.is_one_of(self.only):
                        found.append(unit)
        return found

    def seconds(self, units: Sequence[Unit]) -> list[float]:
        """About how long each takes; the first that needs a teacher makes it."""
        made, found = set(), []
        for unit in units:
            seconds = unit.method.seconds(self.budget, self.pace)
            if unit.method.teacher is not None:
                options = scaled(unit.method.teacher, self.budget)
                key = (unit.source, unit.seed, tuple(options.items()))
                seconds += 0 if key in made else (
                    demo.TEACHER_COST * options["steps"] * self.pace.training)
                made.add(key)
            found.append(seconds * (self.side(unit.source) / SIZE) ** 2)
        return found

    def run(self) -> Iterator[str]:
        """Do all units; yields a line of progress after each."""
        units = self.units()
        expected = self.seconds(units)
        began, before = time.perf_counter(), None
        for done, unit in enumerate(units, start=1):
            if before != (unit.source, unit.seed):
                before = unit.source, unit.seed
                normals = SOURCES[unit.source].normals(unit.seed, self.quick)
                tested = {name: DATA_SETS[name].images(unit.seed, self.quick)
                          for name in of_source(unit.source)}
            values = self._do(unit, normals, tested)
            spent = time.perf_counter() - began
            left = spent * sum(expected[done:]) / sum(expected[:done])
            told = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
            yield (f"[{done}/{len(units)}] {unit.source}, seed {unit.seed}, {unit.name}: AUROC"
                   f" {told}; {duration(spent)} so far, about {duration(left)} left")

    def _do(self, unit: Unit, normals: Normals, tested: Mapping[str, Tested]) -> dict[str, float]:
        """Fit a method and store a row per test set; name of each -> image AUROC."""
        side, method = self.side(unit.source), unit.method
        self.work.mkdir(parents=True, exist_ok=True)
        name = f"{unit.source}-quick" if self.quick else unit.source
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            teachers = Teachers(self.work / "teachers", name, normals.train, side, unit.seed)
            here = environment() | {"threads": torch.get_num_threads(),
                                    "training_precision": demo.training_precision()}
            others = Others()
            fitted = method.fit(method, Job(normals, side, unit.seed, self.budget, teachers,
                                            Path(folder)))
            found = {}
            for data_set in unit.data_sets:
                row = self._row(unit, data_set, fitted, tested[data_set], here, others)
                store_row(self.results, row)
                found[data_set] = row.figures["auroc"]
        gc.collect()  # models are parts of cycles, and a night is long
        return found

    def _row(self, unit: Unit, data_set: str, fitted: Fitted, tested: Tested,
             here: dict[str, object], others: Others) -> Row:
        began = time.perf_counter()
        scores, maps = fitted.score(tested.images)
        seconds = time.perf_counter() - began
        scores = rounded(scores)
        figures = figures_of(scores, maps, tested.masks) | {
            "training_s": fitted.seconds, "ms_per_image": 1e3 * seconds / len(scores)}
        return Row(
            data_set, unit.name, unit.seed, self.budget,
            unit.method.settings(self.side(unit.source), self.budget), figures,
            kind_figures(scores, maps, tested, DATA_SETS[data_set].kinds), tuple(scores.tolist()),
            "".join(map(str, np.asarray(tested.kinds) + 1)), subject_runs(tested.subjects),
            here | {"others_cores": others.cores()}, self.commit, now())


def choose_bench(work: Path, results: Path, budget: float | None, pace: demo.Pace,
                 only: Sequence[str] = ("*",)) -> Bench:
    """What is to be done with the given budget; else with that of the newest stored row; else with
    the largest of BUDGETS that fits MOST_HOURS at this pace."""
    rows = read_rows(results)
    if budget is None and rows:
        budget = max(rows, key=lambda row: row.time).budget
    benches = [Bench(work, results, each, pace, only=only)
               for each in ([budget] if budget else BUDGETS)]
    return next((bench for bench in benches
                 if sum(bench.seconds(bench.units())) <= 3600 * MOST_HOURS), benches[-1])


def plan(bench: Bench) -> str:
    """What is to be done, and about how long that takes here."""
    told = [f"{name}: left out, {why}" for name, source in SOURCES.items()
            if (why := source.missing())]
    units = bench.units()
    told.append(f"{len(units)} fits to do, with {bench.budget:g} times the methods' steps:"
                f" about {duration(sum(bench.seconds(units)))} on this machine")
    return "\n".join(told)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="Folder of teachers and models.")
    parser.add_argument("--results", type=Path,
                        help="Folder of the rows; of quick ones <work>/results.")
    parser.add_argument("--budget", type=float, help="Factor of all training steps.")
    parser.add_argument("--only", action="append", metavar="PATTERN",
                        help="Fits to do, by SOURCE/SEED/METHOD.")
    parser.add_argument("--quick", action="store_true",
                        help="Two steps on a few small images: to see that all works.")
    parser.add_argument("--page", action="store_true",
                        help="Put the stored rows into docs/detection.md, and nothing else.")
    given = parser.parse_args(arguments)
    if given.budget is not None and not given.budget > 0:
        parser.error(f"--budget: expected a number above 0, got {given.budget}")
    only = given.only or ["*"]
    fits = [Unit(source, seed, name, ()) for source in SOURCES for seed in SEEDS
            for name in METHODS]
    for pattern in only:
        if not any(fit.is_one_of([pattern]) for fit in fits):
            parser.error("--only: expected SOURCE/SEED/METHOD, for instance"
                         f" {fits[0].source}/{fits[0].seed}/{fits[0].name}, got {pattern!r}")
    results = given.results or (given.work / "results" if given.quick else RESULTS)
    if given.page:
        write_page(PAGE, read_rows(results))
        return 0
    if given.quick:
        bench = Bench(given.work, results, QUICK_BUDGET, demo.Pace(1, 1), quick=True, only=only)
    else:
        bench = choose_bench(given.work, results, given.budget, demo.Pace.measured(), only)
        print(plan(bench), flush=True)
    for line in bench.run():
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
