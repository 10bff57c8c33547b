"""What a method has come to on a data set with a seed, and where that is stored.

A file <data set>.jsonl has a line per method and seed. Each holds all that a later comparison
needs: the score of every test image, its label and its subject.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection.data_sets import Tested
from scrd_fast.files import atomic_write
from scrd_fast.metrics.pixel import gather_pixels
from scrd_fast.metrics.ranking import auroc, average_precision
from scrd_fast.records import from_mapping

DIGITS = 7  # of a stored score, of which the figures are computed, too


@dataclass(frozen=True)
class Row:
    """settings: all that decided what was fitted; budget: the factor of its steps. figures: of the
    whole test set; by_kind: those of each kind of anomalies against all normal images. scores: of
    the images in their order; kinds: a digit per image, 0 = normal, else the kind from 1 on;
    subjects: (subject, how many images of it follow). time: when it was stored."""

    data_set: str
    method: str
    seed: int
    budget: float
    settings: dict[str, Any]
    figures: dict[str, float]
    by_kind: dict[str, dict[str, float]]
    scores: tuple[float, ...]
    kinds: str
    subjects: tuple[tuple[int, int], ...]
    environment: dict[str, Any]
    commit: str
    time: str

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,), 1 = anomalous."""
        return np.array([int(kind != "0") for kind in self.kinds])

    @property
    def groups(self) -> NDArray[np.int64]:
        """The subject of each image, (N,)."""
        subjects, counts = zip(*self.subjects, strict=True)
        return np.repeat(subjects, counts)


def rounded(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Scores (N,) as they are stored."""
    return np.array([float(f"{score:.{DIGITS}g}") for score in scores])


def figures_of(scores: NDArray[np.float64], maps: NDArray[np.float32], masks: NDArray[np.bool_]
               ) -> dict[str, float]:
    """Of scores (N,), maps and masks (N, S, S); an image whose mask is empty is normal."""
    labels = masks.any(axis=(1, 2)).astype(np.int64)
    pixels = gather_pixels(maps, masks)
    return {"auroc": auroc(labels, scores), "average_precision": average_precision(labels, scores),
            "aupro": pixels.aupro(), "best_dice": pixels.best_dice()[0]}


def kind_figures(scores: NDArray[np.float64], maps: NDArray[np.float32], tested: Tested,
                 names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of each kind of anomalies against all normal images."""
    found = {}
    for kind, name in enumerate(names):
        chosen = np.isin(tested.kinds, (-1, kind))
        found[name] = figures_of(scores[chosen], maps[chosen], tested.masks[chosen])
    return found


def subject_runs(subjects: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Subjects (N,) as (subject, how many of its images follow each other)."""
    return tuple((int(subject), len(list(run))) for subject, run in groupby(subjects.tolist()))


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_rows(folder: Path) -> list[Row]:
    """All stored rows; raises InputError for one that this release does not know."""
    return [_read(line, f"{path.name}: row {number}") for path in sorted(folder.glob("*.jsonl"))
            for number, line in enumerate(path.read_text().splitlines(), start=1)]


def _read(line: str, where: str) -> Row:
    values = json.loads(line)
    return from_mapping(Row, values | {"subjects": tuple(map(tuple, values["subjects"]))}, where)


def store_row(folder: Path, row: Row) -> None:
    """Add a row to the file of its data set, in the place of an earlier one of the same method and
    seed; whatever stops it, the file is whole."""
    kept = [each for each in read_rows(folder) if each.data_set == row.data_set
            and (each.method, each.seed) != (row.method, row.seed)]
    lines = [json.dumps(asdict(each), separators=(",", ":")) for each in [*kept, row]]
    with atomic_write(folder / f"{row.data_set}.jsonl") as temporary:
        temporary.write_text("\n".join(lines) + "\n")


def find_row(rows: Sequence[Row], data_set: str, method: str, seed: int,
             settings: Mapping[str, Any]) -> Row | None:
    """The row of that name and seed, unless it was fitted otherwise."""
    return next((row for row in rows
                 if (row.data_set, row.method, row.seed) == (data_set, method, seed)
                 and row.settings == settings), None)
