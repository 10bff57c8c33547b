"""evaluate: how well an engine tells the normal and anomalous images of a data set apart."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.find import arrange_files
from scrd_fast.data.decode.masks import read_masks
from scrd_fast.data.layouts import DataSet, Item, read_data_set
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import borrow_engine
from scrd_fast.errors import DataError, expect
from scrd_fast.metrics.bootstrap import Interval, image_intervals, pixel_intervals
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.metrics.pixel import gather_pixels
from scrd_fast.metrics.ranking import (
    auroc,
    average_precision,
    best_accuracy,
    best_f1,
    decide,
    sensitivity_at_specificity,
)
from scrd_fast.progress import Progress, silent
from scrd_fast.spec import ScoringSpec

Array = NDArray[Any]
PATIENT_RULES = ("max", "mean")
#: Figures that have seen the labels that they are judged by, as published evaluations have it.
OPTIMISTIC = ("best_f1", "best_accuracy", "best_dice")
_RATES = (0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Figure:
    """A figure from 0 to 1 with its 95 % interval by patient, None where too few patients tell."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class Part:
    """Figures of some of the test images.

    level: "image", or "patient" (the images of one together); group: of anomalous images, None for
    all; normal, anomalous, patients: how many there are. figures: auroc, average_precision,
    sensitivity_at_specificity; at the threshold, where there is one, f1, accuracy, sensitivity and
    specificity; best_f1 and best_accuracy, which are optimistic.
    """

    level: str
    group: str | None
    normal: int
    anomalous: int
    patients: int
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Threshold:
    """Above which an image is called anomalous. source: "validation" (the best F1 there) or
    "calibration" (the engine's own)."""

    value: float
    source: str


@dataclass(frozen=True)
class Judged:
    """A test image: its file, its number in that (None of a file of one), its label (1 =
    anomalous), its group, score and p-value (None without calibration)."""

    path: Path
    frame: int | None
    label: int
    group: str | None
    score: float
    p_value: float | None
    patient: str | None = field(default=None, repr=False)  # not for logs


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    pixels: auroc, average_precision, aupro (up to a false-positive rate of 0.3) and best_dice
    (optimistic) of the images whose masks are known; None without masks. p_values: for rates, the
    share of normal test images whose p-value is at most that, which calibration promises not to
    exceed; None without. failed: files that could not be scored, and why. remarks: what a reader of
    the figures should know.
    """

    engine: Path
    data: Path
    layout: str
    precision: str
    threshold: Threshold | None
    parts: tuple[Part, ...]
    pixels: Mapping[str, Figure] | None
    p_values: Mapping[str, float] | None
    specificity: float
    patient_rule: str
    images: tuple[Judged, ...]
    failed: Mapping[Path, str]
    remarks: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the single images, as JSON-ready values."""
        values = asdict(self)
        del values["images"]
        return values | {
            "engine": str(self.engine), "data": str(self.data),
            "failed": {str(path): reason for path, reason in self.failed.items()}}


@dataclass(frozen=True, eq=False)
class _Seen:
    """A scored image with what its data set says of it; mask: (S, S) of bool, None where no pixel's
    label is known."""

    judged: Judged
    map: Array | None
    mask: Array | None


def evaluate(
    engine: Engine | str | os.PathLike[str], data: str | os.PathLike[str], *,
    patient_from: str | None = None, patient_rule: str = "max", specificity: float = 0.95,
    pixels: bool = True, seed: int = 0, device: str | None = None, trust: bool = False,
    progress: Progress = silent,
) -> Evaluation:
    """Score the test images of a data set and judge the scores by their labels.

    engine: a loaded one or the path of its file. data: a data set with labels, in a layout of
    docs/data_sets.md. patient_from: as in read_data_set. The threshold is that of the best F1 on
    the data set's validation images where these are labelled, else the engine's own calibration's,
    else there is none. Intervals are of 95 %, by a bootstrap of patients (metrics.bootstrap), drawn
    from `seed`; where no file tells its patient, each file is one. patient_rule: a patient's score
    is the "max" or "mean" of the images'. specificity: of sensitivity_at_specificity. pixels: judge
    maps by masks, where there are masks; takes 16 bytes for each pixel of all maps. device, trust:
    of a path, as in `load_engine`. progress: called with (done, total, what).

    Of a file with several images (NIfTI, DICOM) an image is anomalous where its mask has a pixel;
    without a mask all have the label of their file. Files that cannot be read are left out, and
    named. Raises DataError where normal or anomalous test images are lacking, InputError, and what
    `load_engine` and `read_data_set` raise.
    """
    expect(patient_rule in PATIENT_RULES, "patient_rule", f"one of {PATIENT_RULES}", patient_rule)
    expect(0 < specificity < 1, "specificity", "a share above 0 and below 1", specificity)
    found = read_data_set(data, patient_from=patient_from)
    test = _labelled(found, "test")
    _check_kinds(test, data, found)
    with borrow_engine(engine, device, trust) as opened:
        failed: dict[Path, str] = {}
        remarks = list(found.remarks) + _remark_unlabelled(found, test)
        held = _labelled(found, "validation")
        judge = {item.label for item in held} == {0, 1}
        threshold = _choose_threshold(
            [seen.judged for seen in _score(opened, held, False, failed, progress, "validation")]
            if judge else [], opened.decisions)
        masked = pixels and any(item.mask is not None for item in test)
        seen = list(_score(opened, test, masked, failed, progress, "test"))
        images = [each.judged for each in seen]
        if {each.label for each in images} != {0, 1}:
            raise DataError(f"{os.fsdecode(data)}: expected normal and anomalous test images, got"
                            f" {_count(images)} that could be scored; the first of"
                            f" {len(failed)} others: {next(iter(failed.values()), 'none')}")
        remarks += _remark_frames(test, images)
        progress(0, 1, "bootstrap")
        return Evaluation(
            opened.path, Path(data), found.layout, opened.manifest.precision, threshold,
            tuple(_judge_parts(images, threshold, patient_rule, specificity, seed)),
            _judge_pixels(seen, seed) if masked else None,
            _judge_p_values(images), specificity, patient_rule, tuple(images), failed,
            tuple(remarks))


def _labelled(found: DataSet, split: str) -> tuple[Item, ...]:
    return tuple(item for item in found.part(split) if item.label is not None)


def _check_kinds(test: tuple[Item, ...], data: str | os.PathLike[str], found: DataSet) -> None:
    if {item.label for item in test} == {0, 1}:
        return
    kinds = Counter(item.label for item in test)
    raise DataError(f"{os.fsdecode(data)}: expected normal and anomalous images to test on, got a"
                    f" data set ({found.layout}) with {kinds[0]} normal and {kinds[1]} anomalous"
                    " ones; a table (CSV with path, label, split) can say what is what")


def _remark_unlabelled(found: DataSet, test: tuple[Item, ...]) -> list[str]:
    unknown = len(found.part("test")) - len(test)
    return [f"{unknown} test files have no label and are left out"] if unknown else []


def _remark_frames(test: tuple[Item, ...], images: list[Judged]) -> list[str]:
    several = {each.path for each in images if each.frame is not None}
    without = [item.path for item in test
               if item.path in several and item.label == 1 and item.mask is None]
    if not without:
        return []
    return [f"{len(without)} anomalous files of several images have no mask: all of their images"
            f" count as anomalous ({without[0]}); figures by patient do not depend on that"]


def _score(
    engine: Engine, items: tuple[Item, ...], masked: bool, failed: dict[Path, str],
    progress: Progress, what: str,
) -> Iterator[_Seen]:
    """The scored images of files; what cannot be scored goes to `failed`."""
    by_path = {item.path: item for item in items}
    if not by_path:
        return
    arranged = arrange_files(list(by_path), stacklevel=4)
    failed.update(arranged.refused)
    path, files, masks = None, 0, _Masks(engine.spec)
    for done in engine.stream(arranged.paths, maps=masked):
        assert done.source is not None
        if path != done.source.path:
            path, files = done.source.path, files + 1
            masks.open(by_path[path].mask)
        progress(files, len(arranged.paths), f"scoring {what} images")
        item, label, small = by_path[path], int(by_path[path].label == 1), None
        try:
            if done.error is not None:
                raise DataError(done.error)
            if item.mask is not None:
                label, small = masks.read_next(done.image.shape[:2])
            elif label == 0:
                small = masks.none
        except DataError as error:
            failed[path] = str(error)
            continue
        yield _Seen(Judged(
            path, done.source.frame, label, item.group, float(done.score),
            None if done.p_value is None else float(done.p_value),
            item.patient or done.source.patient), done.map, small)


class _Masks:
    """The masks of one file after the other, on the grid of the maps, (S, S) of bool."""

    def __init__(self, spec: ScoringSpec) -> None:
        self._side, self._rule = spec.input_size, spec.decoding
        self.none = np.zeros((self._side, self._side), bool)
        self._path: Path | None = None
        self._left: Iterator[Array] | None = None

    def open(self, path: Path | None) -> None:
        """Go on with the masks of another file, which is read when the first of them is wanted."""
        self._path, self._left = path, None

    def read_next(self, shape: tuple[int, int]) -> tuple[int, Array]:
        """The label of the next image, whose shape is given, and its mask; raises DataError."""
        assert self._path is not None
        if self._left is None:
            self._left = iter(read_masks(self._path, self._rule))
        mask = next(self._left, None)
        if mask is None or mask.shape != shape:
            got = "fewer masks than images" if mask is None else f"{mask.shape}"
            raise DataError(f"{self._path}: expected a mask of the image's shape {shape}, got"
                            f" {got}")
        # A pixel of the map has the label of the mask's pixel at its centre.
        small = cv2.resize(mask.astype(np.uint8), self.none.shape,
                           interpolation=cv2.INTER_NEAREST_EXACT)
        return int(mask.any()), small.astype(bool)


def _choose_threshold(held: list[Judged], decisions: Decisions | None) -> Threshold | None:
    if {each.label for each in held} == {0, 1}:
        labels, scores = [each.label for each in held], [each.score for each in held]
        return Threshold(best_f1(labels, np.array(scores, np.float32))[1], "validation")
    return None if decisions is None else Threshold(decisions.threshold, "calibration")


def _judge_parts(
    images: list[Judged], threshold: Threshold | None, patient_rule: str, specificity: float,
    seed: int,
) -> Iterator[Part]:
    """All images; the patients, where they are known; and the images of each group."""
    value = None if threshold is None else threshold.value
    yield _judge("image", None, images, value, specificity, seed)
    patients = _by_patient(images, patient_rule)
    if len(patients) < len(images) and {each.label for each in patients} == {0, 1}:
        # The threshold is one of images: the maximum of a patient's lies above it where one does.
        chosen = value if patient_rule == "max" else None
        yield _judge("patient", None, patients, chosen, specificity, seed)
    for group in sorted({each.group for each in images if each.group is not None}):
        inside = [each for each in images if each.group == group]
        if not any(each.label for each in inside):
            continue
        if all(each.label for each in inside):  # a kind of anomaly: against all normal images
            inside = [each for each in images if each.group == group or each.label == 0]
        yield _judge("image", group, inside, value, specificity, seed)


def _by_patient(images: list[Judged], rule: str) -> list[Judged]:
    """One for each patient (each file where its patient is not known): anomalous where an image
    is, with the largest or the mean score."""
    members: dict[Any, list[Judged]] = {}
    for each in images:
        members.setdefault(each.patient or each.path, []).append(each)
    combine = max if rule == "max" else (lambda scores: float(np.mean(scores)))
    return [Judged(some[0].path, None, max(each.label for each in some), None,
                   combine([each.score for each in some]), None, some[0].patient)
            for some in members.values()]


def _judge(level: str, group: str | None, images: list[Judged], threshold: float | None,
           specificity: float, seed: int) -> Part:
    labels = np.array([each.label for each in images])
    scores = np.array([each.score for each in images], np.float32)
    patients = _number_patients(images)
    values = {
        "auroc": auroc(labels, scores), "average_precision": average_precision(labels, scores),
        "sensitivity_at_specificity": sensitivity_at_specificity(labels, scores, specificity)}
    if threshold is not None:
        decided = decide(labels, scores, threshold)
        values |= {name: float(getattr(decided, name))
                   for name in ("f1", "accuracy", "sensitivity", "specificity")}
    values |= {"best_f1": best_f1(labels, scores)[0],
               "best_accuracy": best_accuracy(labels, scores)[0]}
    intervals = image_intervals(patients, labels, scores, threshold=threshold,
                                specificity=specificity, seed=seed)
    return Part(level, group, int((labels == 0).sum()), int(labels.sum()), len(set(patients)),
                {name: Figure(value, intervals[name]) for name, value in values.items()})


def _number_patients(images: Iterable[Judged]) -> list[int]:
    """A number for each image's patient; where it is not known each file is one."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(each.patient or each.path, len(numbers)) for each in images]


def _judge_pixels(seen: list[_Seen], seed: int) -> dict[str, Figure] | None:
    known = [each for each in seen if each.mask is not None]
    masks = [each.mask for each in known if each.mask is not None]
    maps = [each.map for each in known if each.map is not None]
    if not any(mask.any() for mask in masks):
        return None
    gathered = gather_pixels(maps, masks)
    values = {"auroc": gathered.auroc(), "average_precision": gathered.average_precision(),
              "aupro": gathered.aupro(), "best_dice": gathered.best_dice()[0]}
    patients = _number_patients(each.judged for each in known)
    intervals = pixel_intervals(maps, masks, patients, gathered, seed=seed)
    return {name: Figure(value, intervals[name]) for name, value in values.items()}


def _judge_p_values(images: list[Judged]) -> dict[str, float] | None:
    found = np.array([each.p_value for each in images
                      if each.label == 0 and each.p_value is not None])
    return {f"{rate:g}": float((found <= rate).mean()) for rate in _RATES} if len(found) else None


def _count(images: list[Judged]) -> str:
    normal = sum(each.label == 0 for each in images)
    return f"{normal} normal and {len(images) - normal} anomalous ones"
