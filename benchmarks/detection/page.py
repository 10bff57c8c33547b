"""docs/detection.md: the tables that the stored rows give."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.data_sets import DATA_SETS
from benchmarks.detection.methods import BASE, METHODS
from benchmarks.detection.rows import Row
from scrd_fast.files import atomic_write
from scrd_fast.metrics.bootstrap import Interval, intervals
from scrd_fast.metrics.ranking import rank

BEGIN, END = "<!-- detection: make detection-page -->", "<!-- end of detection -->"
NOTHING = "Nothing has been measured yet: `make detection` measures it and writes the tables here."
MOST_CORES = 0.2  # that other work may take before a row is said to be measured beside it
HEADER = ("method", "image AUROC", "lowest to highest seed", f"less that of `{BASE}`, 95 %",
          "average precision", "AUPRO of pixels", "best Dice of pixels", "training, s",
          "ms per image")

Weights = NDArray[np.float64]


def with_tables(page: str, rows: Sequence[Row]) -> str:
    """The page with the tables of rows in the place of those that it has."""
    head, tail = page[: page.index(BEGIN)], page[page.index(END) + len(END) :]
    shown = current(rows)
    parts = [section(name, found) for name in DATA_SETS
             if (found := [row for row in shown if row.data_set == name])]
    body = "\n".join(["## Methods", "", method_table(), "", *(parts or [f"{NOTHING}\n"])])
    return f"{head}{BEGIN}\n\n{body}\n{END}{tail}"


def current(rows: Sequence[Row]) -> list[Row]:
    """Those with the budget of the newest one and with the options that their method has now:
    others cannot be compared."""
    if not rows:
        return []
    budget = max(rows, key=lambda row: row.time).budget
    return [row for row in rows if row.method in METHODS and row.settings == METHODS[
        row.method].settings(row.settings["side"], budget)]


def section(name: str, rows: Sequence[Row]) -> str:
    """Heading, tables and where they were measured, of the rows of one data set."""
    data_set = DATA_SETS[name]
    by_method = {method: sorted((row for row in rows if row.method == method),
                                key=lambda row: row.seed)
                 for method in METHODS}
    by_method = {method: found for method, found in by_method.items() if found}
    lines = [f"## {name}", "", f"{data_set.what}.", "", _table(
        HEADER, [_line(method, found, by_method.get(BASE, [])) for method, found in
                 by_method.items()]), ""]
    if len(data_set.kinds) > 1:
        lines += ["Image AUROC of each kind of anomalies against all normal images, mean over the"
                  " seeds; in brackets the AUPRO of its pixels:", "", _table(
                      ("method", *data_set.kinds),
                      [(method, *(_kind(found, kind) for kind in data_set.kinds))
                       for method, found in by_method.items()]), ""]
    return "\n".join([*lines, *where(rows), ""])


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in
                     (header, ["---"] * len(header), *lines))


def _mean(rows: Sequence[Row], name: str) -> float:
    return float(np.mean([row.figures[name] for row in rows]))


def _kind(rows: Sequence[Row], kind: str) -> str:
    image, pixel = (np.mean([row.by_kind[kind][name] for row in rows])
                    for name in ("auroc", "aupro"))
    return f"{image:.3f} ({pixel:.3f})"


def _line(method: str, rows: Sequence[Row], base: Sequence[Row]) -> tuple[str, ...]:
    """The cells of a method; only methods that share seeds with BASE have a difference."""
    values = [row.figures["auroc"] for row in rows]
    spread = f"{min(values):.3f} to {max(values):.3f}" if len(rows) > 1 else "one seed"
    difference = ""
    if method != BASE and {row.seed for row in rows} & {row.seed for row in base}:
        value, interval = difference_of(rows, base)
        difference = f"{value:+.3f}" + (
            "" if interval is None else f" ({interval.low:+.3f} to {interval.high:+.3f})")
    return (method, f"{_mean(rows, 'auroc'):.3f}", spread, difference,
            *(f"{_mean(rows, name):.3f}" for name in ("average_precision", "aupro", "best_dice")),
            f"{_mean(rows, 'training_s'):.0f}", f"{_mean(rows, 'ms_per_image'):.1f}")


def difference_of(rows: Sequence[Row], base: Sequence[Row]) -> tuple[float, Interval | None]:
    """How much larger the AUROC of a method is than that of another on the same images, and its
    interval by the paired bootstrap over subjects.

    Over all seeds that both have: the share of pairs of an anomalous and a normal image, both of
    one seed, that are in order. A subject that is drawn counts with all its images, of all seeds
    and both methods, as often. None where the interval cannot be told (see `intervals`).
    """
    pairs = [(row, other) for row in rows for other in base if row.seed == other.seed]
    ranked = [tuple(rank(each.labels, np.array(each.scores)) for each in pair) for pair in pairs]
    ends = np.cumsum([len(row.scores) for row, _ in pairs])

    def difference(weights: Weights) -> Weights:
        """(B, N) -> (B,)"""
        won, count = np.zeros((2, len(weights))), np.zeros(len(weights))
        for both, part in zip(ranked, np.split(weights, ends[:-1], axis=1), strict=True):
            for k, each in enumerate(both):
                steps = each.steps(part)
                won[k] += (steps.hits * (2 * steps.normal[:, None] - steps.above - steps.alarms)
                           ).sum(-1) / 2
            count += steps.hits.sum(-1) * steps.normal
        found: Weights = (won[0] - won[1]) / count
        return found

    groups = np.concatenate([row.groups for row, _ in pairs])
    labels = np.concatenate([row.labels for row, _ in pairs])
    # `intervals` are of figures from 0 to 1.
    found = intervals(groups, labels, lambda weights: {"": (1 + difference(weights)) / 2})[""]
    value = float(difference(np.ones((1, len(groups))))[0])
    return value, None if found is None else Interval(
        2 * found.low - 1, 2 * found.high - 1, found.limit)


def where(rows: Sequence[Row]) -> list[str]:
    """On what, when and how rows were measured, in sentences."""
    first = rows[0]
    seeds = sorted({row.seed for row in rows})
    subjects = len({subject for row in rows for subject, _ in row.subjects})
    budgets = sorted({row.budget for row in rows})
    days = sorted({row.time[:10] for row in rows})
    commits = sorted({row.commit for row in rows})
    machines = sorted({_machine(row.environment) for row in rows})
    # The load average before a fit, by which "busy" is told, is that of the fit before, too.
    others = [row.environment.get("others_cores") for row in rows]
    unknown = others.count(None)
    busy = sum(cores > MOST_CORES for cores in others if cores is not None)
    told = [
        f"Measured with seeds {', '.join(map(str, seeds))}; {subjects} subjects in all; per seed"
        f" {first.kinds.count('0')} normal and {len(first.kinds) - first.kinds.count('0')}"
        f" anomalous images. Steps: {', '.join(f'{budget:g}' for budget in budgets)} times those of"
        f" the methods. On {'; '.join(machines)}; {' to '.join(days[:1] + days[1:][-1:])}; commit"
        f" {', '.join(commits)}."]
    if unknown:
        told.append(f"Of the {len(rows)} rows {unknown} do not say whether other work ran beside"
                    " them.")
    if busy:
        told.append(f"Of the {len(rows)} rows {busy} were measured beside other work, which"
                    " lengthens their times.")
    return told


def _machine(environment: Mapping[str, object]) -> str:
    return (f"{environment['cpu']}, {environment['cores']} cores, {environment['threads']} threads,"
            f" training in {environment['training_precision']}, PyTorch {environment['torch']}")


def method_table() -> str:
    """What each method is."""
    return _table(("method", "what it is"), [(name, method.what) for name, method in
                                             METHODS.items()])


def write_page(path: Path, rows: Sequence[Row]) -> None:
    """Put the tables of rows into a page."""
    text = with_tables(path.read_text(), rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text)
