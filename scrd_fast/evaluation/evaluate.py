"""evaluate: how well an engine tells the normal and anomalous images of a data set apart."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.find import arrange_files
from scrd_fast.data.decode.masks import Mask, read_masks
from scrd_fast.data.decode.read import is_one_picture
from scrd_fast.data.layouts import DataSet, Item, read_data_set
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import borrow_engine
from scrd_fast.engine.stream import Scored
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
from scrd_fast.records import is_number
from scrd_fast.spec import ScoringSpec

Array = NDArray[Any]
PATIENT_RULES = ("max", "mean")
#: Figures that have seen the labels that they are judged by, as published evaluations have it.
OPTIMISTIC = ("best_f1", "best_accuracy", "best_dice")
_RATES = (0.01, 0.05, 0.1)
_OFF = 0.5  # pixels; a mask that lies farther off is of another grid


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
    seed: int
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
    each: Callable[["Judged", Scored], None] | None = None, progress: Progress = silent,
) -> Evaluation:
    """Score the test images of a data set and judge the scores by their labels.

    engine: a loaded one or the path of its file. data: a data set with labels, in a layout of
    docs/data_sets.md. patient_from: as in read_data_set. The threshold is that of the best F1 on
    the data set's validation images where these are labelled, else the engine's own calibration's,
    else there is none. Intervals are of 95 %, by a bootstrap of patients (metrics.bootstrap), drawn
    from `seed`; where no file tells its patient, each file is one. patient_rule: a patient's score
    is the "max" or "mean" of the images'. specificity: of sensitivity_at_specificity. pixels: judge
    maps by masks, where there are masks; takes 12 bytes for each pixel of all maps. device, trust:
    of a path, as in `load_engine`. each: called with every test image that is judged, and its
    pixels, map and distances. progress: called with (done, total, what).

    Of a file with several images (NIfTI, DICOM, TIFF) an image is anomalous where its mask has a
    pixel; without a mask all have the label of their file. A mask has the image's shape and, where
    both files tell, its place in the patient; at the maps' size a pixel has the label of the mask's
    pixel at its centre. Files that cannot be read, or whose mask does not fit, are left out as a
    whole, and named. Raises DataError where normal or anomalous test images are lacking,
    InputError, and what `load_engine` and `read_data_set` raise.
    """
    expect(patient_rule in PATIENT_RULES, "patient_rule", f"one of {PATIENT_RULES}", patient_rule)
    expect(is_number(specificity) and 0 < specificity < 1, "specificity",
           "a share above 0 and below 1", specificity)
    expect(type(seed) is int and 0 <= seed < 2**64, "seed", "an integer from 0", seed)
    found = read_data_set(data, patient_from=patient_from)
    test = _labelled(found, "test")
    _check_kinds(test, data, found)
    with borrow_engine(engine, device, trust) as opened:
        failed: dict[Path, str] = {}
        remarks = list(found.remarks) + _remark_unlabelled(found, test)
        held = _labelled(found, "validation")
        judge = _tell_both(held)
        threshold = _choose_threshold(
            [seen.judged for seen in _score(opened, held, False, failed, progress, "validation")]
            if judge else [], opened.decisions)
        masked = pixels and any(item.mask is not None for item in test)
        seen = list(_score(opened, test, masked, failed, progress, "test", each))
        images = [each.judged for each in seen]
        if {each.label for each in images} != {0, 1}:
            raise DataError(f"{os.fsdecode(data)}: expected normal and anomalous test images, got"
                            f" {_count(images)} that could be scored; the first of"
                            f" {len(failed)} others: {next(iter(failed.values()), 'none')}")
        remarks += _remark_frames(test, images) + _remark_masks(test, seen)
        progress(0, 1, "bootstrap")
        return Evaluation(
            opened.path, Path(data), found.layout, opened.manifest.precision, threshold,
            tuple(_judge_parts(images, test, threshold, patient_rule, specificity, seed)),
            _judge_pixels(seen, seed) if masked else None,
            _judge_p_values(images), specificity, patient_rule, seed, tuple(images), failed,
            tuple(remarks))


def _labelled(found: DataSet, split: str) -> tuple[Item, ...]:
    return tuple(item for item in found.part(split) if item.label is not None)


def _tell_both(items: tuple[Item, ...]) -> bool:
    """Whether files are normal and anomalous, or may have images of both kinds in one file."""
    return {item.label for item in items} == {0, 1} or any(
        item.label == 1 and item.mask is not None and not is_one_picture(item.path)
        for item in items)


def _check_kinds(test: tuple[Item, ...], data: str | os.PathLike[str], found: DataSet) -> None:
    if _tell_both(test):
        return
    if not test:
        raise DataError(f"{os.fsdecode(data)}: expected images to test on, got a data set"
                        f" ({found.layout}) without: {len(found.items)} images are to train or"
                        " validate on, or have no label; a table (CSV with path, label, split) can"
                        " say what is what")
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


def _remark_masks(test: tuple[Item, ...], seen: list[_Seen]) -> list[str]:
    """On what counts as normal although the data set calls it anomalous."""
    found = {each.judged.path for each in seen if each.judged.label}
    scored = {each.judged.path for each in seen}
    empty = [item.path for item in test if item.label == 1 and item.path in scored - found]
    lost = [each for each in seen if each.judged.label and each.map is not None
            and each.mask is not None and not each.mask.any()]
    remarks = [f"{len(empty)} anomalous files have a mask without an anomalous pixel: all of their"
               f" images count as normal ({empty[0]})"] if empty else []
    if lost and lost[0].map is not None:
        rows, columns = lost[0].map.shape
        remarks.append(f"{len(lost)} anomalous images have no anomalous pixel left in their mask at"
                       f" the maps' {rows} x {columns} pixels, all of which count as normal"
                       f" ({lost[0].judged.path})")
    return remarks


def _score(
    engine: Engine, items: tuple[Item, ...], masked: bool, failed: dict[Path, str],
    progress: Progress, what: str, each: Callable[["Judged", Scored], None] | None = None,
) -> Iterator[_Seen]:
    """The scored images of files; a file that cannot be judged as a whole goes to `failed`."""
    by_path = {item.path: item for item in items}
    if not by_path:
        return
    arranged = arrange_files(list(by_path), stacklevel=4)
    failed.update(arranged.refused)
    whole = each is not None
    files = groupby(engine.stream(arranged.paths, maps=masked or whole, distances=whole),
                    key=attrgetter("path"))
    for number, (path, group) in enumerate(files, start=1):
        progress(number, len(arranged.paths), f"scoring {what} images")
        scored = list(group)
        try:
            seen = _see_file(by_path[path], scored, engine.spec)
        except DataError as error:
            failed[path] = str(error)
            continue
        for one, item in zip(seen, scored, strict=True):
            if each is not None:
                each(one.judged, item)
            yield one if masked else replace(one, map=None)


def _see_file(item: Item, scored: list[Scored], spec: ScoringSpec) -> list[_Seen]:
    """The images of one file with their labels and masks; raises DataError where one lacks."""
    for done in scored:
        if done.error is not None:
            raise DataError(done.error)
    side = spec.input_size
    nothing = None if item.label else np.zeros((side, side), bool)
    small, found = [nothing] * len(scored), [bool(item.label)] * len(scored)
    if item.mask is not None:
        import cv2

        masks = read_masks(item.mask, spec.decoding)
        _check_grids(item.mask, masks, scored)
        found = [bool(mask.pixels.any()) for mask in masks]
        if item.label == 0 and any(found):
            raise DataError(f"{item.mask}: expected no anomalous pixel in the mask of a normal"
                            " file, got some")
        # A pixel of the map has the label of the mask's pixel at its centre.
        small = [cv2.resize(mask.pixels.astype(np.uint8), (side, side),
                            interpolation=cv2.INTER_NEAREST_EXACT).astype(bool) for mask in masks]
    return [_see(item, *each) for each in zip(scored, found, small, strict=True)]


def _see(item: Item, done: Scored, found: bool, small: Array | None) -> _Seen:
    source = done.source
    assert source is not None
    label = found if source.frame is not None else bool(item.label)
    return _Seen(Judged(
        source.path, source.frame, int(label), item.group, float(done.score),
        None if done.p_value is None else float(done.p_value),
        item.patient or source.whose), done.map, small)


def _check_grids(path: Path, masks: list[Mask], scored: list[Scored]) -> None:
    """Raise DataError unless each image has a mask of its pixels."""
    if len(masks) != len(scored):
        raise DataError(f"{path}: expected a mask for each of the file's {len(scored)} images, got"
                        f" {len(masks)}")
    for mask, done in zip(masks, scored, strict=True):
        shape = done.image.shape[:2]
        if mask.pixels.shape != shape:
            raise DataError(f"{path}: expected a mask of the image's shape {shape}, got"
                            f" {mask.pixels.shape}")
        if mask.geometry is None or done.geometry is None:
            continue
        corners = np.array([[i, j, 0, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1)]).T
        at = np.linalg.solve(done.geometry, mask.geometry @ corners)
        off = float(np.abs(at - corners).max())
        if off > _OFF:
            raise DataError(f"{path}: expected a mask on the image's grid, got one that lies up to"
                            f" {off:.3g} of its pixels away in the patient")


def _choose_threshold(held: list[Judged], decisions: Decisions | None) -> Threshold | None:
    if {each.label for each in held} == {0, 1}:
        labels, scores = [each.label for each in held], [each.score for each in held]
        return Threshold(best_f1(labels, np.array(scores, np.float32))[1], "validation")
    return None if decisions is None else Threshold(decisions.threshold, "calibration")


def _judge_parts(
    images: list[Judged], test: tuple[Item, ...], threshold: Threshold | None, patient_rule: str,
    specificity: float, seed: int,
) -> Iterator[Part]:
    """All images; the patients, where they are known; and the images of each group."""
    value = None if threshold is None else threshold.value
    yield _judge("image", None, images, value, specificity, seed)
    patients = _by_patient(images, patient_rule)
    if len(patients) < len(images) and {each.label for each in patients} == {0, 1}:
        # The threshold is one of images: the maximum of a patient's lies above it where one does.
        chosen = value if patient_rule == "max" else None
        yield _judge("patient", None, patients, chosen, specificity, seed)
    of_normals = {item.group for item in test if item.label == 0}
    for group in sorted({each.group for each in images if each.group is not None}):
        inside = [each for each in images if each.group == group or (
            # A kind of anomaly has no normal files of its own: it stands against all of them.
            group not in of_normals and each.label == 0)]
        # Of one kind alone the figures are those of all images.
        if {each.label for each in inside} == {0, 1} and len(inside) < len(images):
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
                      if each.label == 0 and each.p_value is not None], np.float32)
    # In the p-values' own type, in which 1/20 is the rate of 0.05.
    return {f"{rate:g}": float((found <= np.float32(rate)).mean()) for rate in _RATES} if len(
        found) else None


def _count(images: list[Judged]) -> str:
    normal = sum(each.label == 0 for each in images)
    return f"{normal} normal and {len(images) - normal} anomalous ones"
