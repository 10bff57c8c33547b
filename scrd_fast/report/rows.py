"""What scoring an image gave, as a row: its fields are the columns of every table of scores."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, expect
from scrd_fast.records import read_record


@dataclass(frozen=True)
class ScoreRow:
    """An image and its results; None where there is none, or where it is not known.

    image: its file's path, or its name; frame: its number in a file of several, from 0. patient is
    DICOM's Patient ID or what the data set says; study, series and instance are DICOM's unique
    identifiers. label: 1 = anomalous, 0 = normal; group: of a data set, such as a kind of anomaly.
    score, p_value, anomalous and scale_weights: as `Scored` has them. error: why there is no score.
    """

    image: str
    frame: int | None = None
    patient: str | None = field(default=None, repr=False)  # not for logs
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    label: int | None = None
    group: str | None = None
    score: float | None = None
    p_value: float | None = None
    anomalous: bool | None = None
    scale_weights: tuple[float, float, float] | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        expect(self.label in (None, 0, 1), "label", "0 or 1", self.label)
        expect(self.p_value is None or 0 <= self.p_value <= 1, "p_value", "a share", self.p_value)
        expect(self.score is None or self.error is None, "error", "none with a score", "one")

    @property
    def volume(self) -> str | None:
        """What the image is a slice of: the series, or the file of several images."""
        return self.series or (None if self.frame is None else self.image)


def make_row(item: Scored, *, patient: str | None = None, label: int | None = None,
             group: str | None = None) -> ScoreRow:
    """The row of an image that comes from a file; patient, which counts before what the file says,
    label and group: of its data set."""
    source = item.source
    assert source is not None
    told = ScoreRow(str(source.path), source.frame, patient or source.patient, source.study,
                    source.series, source.instance, label, group)
    if item.error is not None:
        return replace(told, error=item.error.removeprefix(f"{source.path}: "))
    return add_results(told, item.score, item.scale_weights, item.p_value, item.anomalous)


def add_results(row: ScoreRow, score: Any, scale_weights: Any, p_value: Any = None,
                anomalous: Any = None) -> ScoreRow:
    """The row with results, of NumPy's types or Python's."""
    first, second, third = map(shorten, scale_weights)
    return replace(row, score=shorten(score), scale_weights=(first, second, third),
                   p_value=None if p_value is None else shorten(p_value),
                   anomalous=None if anomalous is None else bool(anomalous))


def shorten(value: Any) -> float:
    """The float that is written with the fewest digits which read back as the same float32."""
    return float(str(np.float32(value)))


def write_json_line(row: ScoreRow) -> str:
    """The row as a JSON object in one line, every field in it. Bytes of a path that are no text are
    there as Python has them, as lone surrogates."""
    return json.dumps(asdict(row))


def read_rows(path: Path) -> Iterator[ScoreRow]:
    """The rows of a file of JSON lines; DataError names a line that is none, or the file."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield read_record(ScoreRow, json.loads(line), f"line {number}")
                except (ValueError, RecursionError) as error:  # InputError among them
                    # Without what was there instead, which may be a patient's.
                    reason = str(error).partition(", got ")[0]
                    raise DataError(f"{os.fsdecode(path)}: expected a row of scores in each line:"
                                    f" {reason}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{os.fsdecode(path)}: expected text, got other bytes") from error
    except OSError as error:
        raise DataError(f"{os.fsdecode(path)}: cannot be read: {error.strerror}") from error
