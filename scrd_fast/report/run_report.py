"""The page about a run: which images are in it, and what it says of them without naming anyone."""

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.layouts.tree import count
from scrd_fast.errors import expect
from scrd_fast.evaluation.evaluate import Figure
from scrd_fast.metrics.ranking import auroc, average_precision
from scrd_fast.progress import Progress, silent
from scrd_fast.records import is_whole
from scrd_fast.report.build_report import list_plots, list_tables, summarise
from scrd_fast.report.evaluation import name_figure, show_figure
from scrd_fast.report.model_card import INTENDED_USE, list_engine_tables, list_sections
from scrd_fast.report.rows import ScoreRow, shorten
from scrd_fast.report.run_folder import EvaluationRecord, Gallery, Run, shrink
from scrd_fast.report.templates import Table, write_page
from scrd_fast.spec import STRIDES

_DISTANCE_SIDES = (64, 32, 16)  # of the three scales in the page, at most
_MOST_FAILURES = 200
_HINT = "the gallery holds {} of them, the {} with the highest and the {} with the lowest scores"

Array = NDArray[Any]


def write_report(run: Run, out: str | os.PathLike[str], *, images: int = 1000,
                 patients: bool = False, title: str | None = None,
                 progress: Progress = silent) -> int:
    """Write the page about a run; returns how many images are in its gallery.

    images: how many at most, the most and the least anomalous, half of each; all scores are in
    figures and counts. patients: show the patients' IDs instead of numbers. title: of the page.
    progress: called with (done, total, what).
    Raises DataError for a damaged gallery, InputError, OutputError, and MissingExtra where jinja2
    is not installed.
    """
    expect(is_whole(images, 2), "images", "an integer from 2", images)
    numbers = [i for i, row in enumerate(run.rows) if row.score is not None]
    scored = [run.rows[i] for i in numbers]
    names, shown = Names(run.rows), choose_images(scored, images)
    groups = sorted({row.group for row in scored if row.group is not None})
    patient_numbers, patient_names = number_patients(scored, named=patients)
    with run.open_gallery() as gallery:
        items = []
        for done, i in enumerate(shown):
            progress(done, len(shown), "pictures")
            items.append(_make_item(gallery, numbers[i], i, scored[i], names))
    _join_volumes([scored[i] for i in shown], items)
    threshold, source = _find_threshold(run)
    data = {
        "scores": [row.score for row in scored],
        "labels": [-1 if row.label is None else row.label for row in scored],
        "patients": patient_numbers,
        "patientNames": [name and show_text(name) for name in patient_names],
        "groups": [-1 if row.group is None else groups.index(row.group) for row in scored],
        "groupNames": [show_text(each) for each in groups],
        "threshold": threshold, "scale": run.record.scale, "strides": STRIDES,
        "weighting": run.manifest.spec.weighting,
        "colours": _encode(_list_colours().tobytes()),
        "distanceScales": _scale_distances(items),
        "items": [item.values for item in items]}
    write_page(
        out, "report.html", data, title=show_text(title or f"Report on {run.record.engine}"),
        record=run.record, threshold=source, use=INTENDED_USE, engine_line=_introduce(run),
        summary=show_text(summarise(run.manifest)), counts=_count(run, scored, len(shown)),
        curves=_judge(scored, run.evaluation), grouped=bool(groups),
        known_patients=any(patient_names), named=patients,
        evaluation=_list_figures(run.evaluation),
        remarks=[] if run.evaluation is None else [
            names.clean(each) for each in run.evaluation.remarks],
        failures=_list_failures(run.rows, names), card=list_sections(run.manifest),
        builds=list_tables(run.manifest), plots=list_plots(run.manifest),
        engine=list_engine_tables(run.manifest))
    return len(shown)


def choose_images(scored: Sequence[ScoreRow], images: int) -> list[int]:
    """The numbers of so many rows that have a score, rising: the highest and the lowest."""
    falling = sorted(range(len(scored)), key=lambda i: -cast(float, scored[i].score))
    if len(scored) <= images:
        return sorted(falling)
    low = images // 2
    return sorted(falling[: images - low] + falling[-low:])


def number_patients(
    rows: Iterable[ScoreRow], *, named: bool
) -> tuple[list[int], list[str | None]]:
    """Whose each image is, by a number from 0, and the patients by their numbers: "patient 1" or,
    where they are to be named and a file tells it, the patient's ID. An image whose patient nothing
    tells is one of its own, None. As `Source.whose`: images share a patient, study, series, or a
    file of several images."""
    numbers: list[int] = []
    names: list[str | None] = []
    known: dict[str, int] = {}
    for row in rows:
        whose = row.patient or row.study or row.volume
        if whose is None or whose not in known:
            numbers.append(len(names))
            if whose is not None:
                known[whose] = len(names)
            names.append(None if whose is None else
                         row.patient if named and row.patient else f"patient {len(known)}")
        else:
            numbers.append(known[whose])
    return numbers, names


def show_text(text: str) -> str:
    """Text for a page: bytes of file names that are no text are there as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


class Names:
    """Files by their paths below the folder that all of them share."""

    def __init__(self, rows: Sequence[ScoreRow]) -> None:
        # Of paths from the root, and of others.
        folders = [{os.path.dirname(row.image) for row in rows if os.path.isabs(row.image) == whole}
                   for whole in (False, True)]
        self._common = [os.path.commonpath(each) if each else "" for each in folders]

    def of(self, row: ScoreRow) -> str:
        common = self._common[os.path.isabs(row.image)]
        return show_text(os.path.relpath(row.image, common) if common else row.image)

    def clean(self, text: str) -> str:
        """A message without the common folders."""
        for common in self._common:
            if len(common) > 1:
                text = text.replace(common + os.sep, "")
        return show_text(text)


@dataclass(frozen=True, eq=False)
class _Item:
    """An image of the gallery: what the page has of it, and the median and the 99th percentile of
    each scale's distances."""

    values: dict[str, Any]
    levels: list[tuple[float, float]] | None


def _make_item(gallery: Gallery, number: int, place: int, row: ScoreRow, names: Names) -> _Item:
    """number: of its row; place: among those that have a score."""
    picture, heat = gallery.picture(number), gallery.map(number)
    distances = gallery.distances(number)
    parts = [] if heat is None else [heat]
    parts += [shrink(each, side) for each, side in zip(
        distances or (), _DISTANCE_SIDES, strict=False)]
    packed = [_pack(part) for part in parts]
    return _Item({
        "at": place, "name": names.of(row), "frame": row.frame, "p": row.p_value,
        "weights": row.scale_weights, "volume": None,
        "picture": None if picture is None else _encode(picture),
        "map": None if heat is None else packed[0][0],
        "distances": None if distances is None else [about for about, _ in packed[-3:]],
        "bytes": _encode(b"".join(data for _, data in packed))},
        None if distances is None else [
            tuple(np.quantile(each, (0.5, 0.99)).tolist()) for each in distances])


def _pack(values: NDArray[np.float32]) -> tuple[dict[str, Any], bytes]:
    """Values as 8 bits between their smallest and largest, which the page is told."""
    low, high = float(values.min()), float(values.max())
    steps = np.rint((values - low) * (255 / max(high - low, 1e-12)))
    return {"height": values.shape[0], "width": values.shape[1], "low": _round(low),
            "high": _round(high)}, steps.astype(np.uint8).tobytes()


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _list_colours() -> NDArray[np.uint8]:
    """The colours of overlays, (256, 3) RGB."""
    steps = np.arange(256, dtype=np.uint8)[None]
    return cv2.applyColorMap(steps, cv2.COLORMAP_INFERNO)[0, :, ::-1].astype(np.uint8)


def _join_volumes(rows: Sequence[ScoreRow], items: Sequence[_Item]) -> None:
    """Number the series and files of several images, whose images scroll together."""
    members: dict[str, list[_Item]] = {}
    for row, item in zip(rows, items, strict=True):
        if row.volume is not None:
            members.setdefault(row.volume, []).append(item)
    for number, several in enumerate(some for some in members.values() if len(some) > 1):
        for item in several:
            item.values["volume"] = number


def _scale_distances(items: Iterable[_Item]) -> list[tuple[float, float]]:
    """For each scale where colour begins and is strongest: the median of the images' medians, and
    the largest of their 99th percentiles."""
    given = [item.levels for item in items if item.levels is not None]
    return [(_round(float(np.median([low for low, _ in levels]))),
             _round(max(high for _, high in levels))) for levels in zip(*given, strict=True)]


def _find_threshold(run: Run) -> tuple[float | None, str]:
    """The threshold that the page starts at, and where it comes from."""
    evaluation, calibration = run.evaluation, run.manifest.calibration
    if evaluation is not None and evaluation.threshold is not None:
        source = {"validation": "the best F1 on the validation images",
                  "calibration": "the engine’s calibration"}
        chosen = evaluation.threshold
        return shorten(chosen.value), source.get(chosen.source, chosen.source)
    if calibration is not None:
        return shorten(calibration.threshold), "the engine’s calibration"
    return None, "the middle of the scores, for the engine is not calibrated"


def _introduce(run: Run) -> str:
    manifest = run.manifest
    return (f"{manifest.model.network} at {manifest.spec.input_size} px, {manifest.backend}"
            f" {manifest.precision}")


def _count(run: Run, scored: Sequence[ScoreRow], shown: int) -> list[str]:
    labels = [row.label for row in scored]
    told = [f"{count(len(scored), 'image')} scored: {labels.count(1)} anomalous, {labels.count(0)}"
            f" normal, {labels.count(None)} without a label."]
    if shown < len(scored):
        told[0] = told[0].removesuffix(".") + "; " + _HINT.format(
            shown, shown - shown // 2, shown // 2) + "."
    failed = len(run.rows) - len(scored)
    if failed:
        told.append(f"{count(failed, 'file')} could not be scored.")
    return told


def _judge(scored: Sequence[ScoreRow], evaluation: EvaluationRecord | None
           ) -> dict[str, str] | None:
    """AUROC and average precision, with intervals where an evaluation tells them; None where the
    labels are not of both kinds."""
    known = [row for row in scored if row.label is not None]
    labels = np.array([row.label for row in known])
    if set(labels.tolist()) != {0, 1}:
        return None
    scores = np.array([row.score for row in known], np.float32)
    told = {} if evaluation is None else evaluation.parts[0].figures
    return {name: show_figure(told.get(name, Figure(compute(labels, scores), None)), digits=3)
            for name, compute in (("auroc", auroc), ("average_precision", average_precision))}


def _list_figures(evaluation: EvaluationRecord | None) -> list[Table]:
    """A table of figures for each part of the evaluation."""
    if evaluation is None:
        return []
    tables = []
    for part in evaluation.parts:
        of = "patients" if part.level == "patient" else "images"
        group = "" if part.group is None else f", group {show_text(part.group)}"
        tables.append(_tabulate(f"{part.normal} normal and {part.anomalous} anomalous {of}{group},"
                                f" {part.patients} patients or files", part.figures, evaluation))
    if evaluation.pixels is not None:
        tables.append(_tabulate("Pixels of the images whose masks are known", evaluation.pixels,
                                evaluation))
    if evaluation.p_values is not None:
        tables.append(Table("Normal images by their p-values", ("p-value of at most", "share"),
                            list(evaluation.p_values.items())))
    return tables


def _tabulate(caption: str, figures: Any, evaluation: EvaluationRecord) -> Table:
    return Table(caption, ("figure", "value", "95 % from", "to"), [
        (name_figure(name, evaluation.specificity), each.value,
         *((None, None) if each.interval is None else (each.interval.low, each.interval.high)))
        for name, each in figures.items()])


def _list_failures(rows: Sequence[ScoreRow], names: Names) -> Table | None:
    failed = [row for row in rows if row.error is not None]
    if not failed:
        return None
    more = "" if len(failed) <= _MOST_FAILURES else f", the first {_MOST_FAILURES}"
    caption = f"{count(len(failed), 'file')} that could not be scored{more}"
    return Table(caption, ("file", "reason"), [
        (names.of(row), names.clean((row.error or "").removeprefix(f"{row.image}: ")))
        for row in failed[:_MOST_FAILURES]])
