"""DICOM files as the slices of series: their order, what is missing, what is no slice.

Only headers are read. What a header says wrongly is left for the decoder to tell.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.ahead import THREADS
from scrd_fast.data.decode.dicom_kind import read_for_order, tell_what_it_is
from scrd_fast.data.decode.dicom_pixels import read_numbers, read_texts
from scrd_fast.data.decode.image import Source
from scrd_fast.data.decode.quiet import silent_libraries
from scrd_fast.data.decode.read import is_dicom_file
from scrd_fast.errors import DataError

_TILTED = 0.5  # degrees between the slices' normal and the way from the first to the last
_GAP = 1.5  # usual steps; a larger one has room for a slice
_AROUND = 5  # steps that tell what is usual: some scans are thinner at the base of the skull


@dataclass(frozen=True)
class Header:
    """What a file says of its place among others; None and empty where it does not.

    kind: what it is if no picture of a patient. number: within its series. position and directions
    (of increasing column, of increasing row): in the patient, in mm, LPS.
    """

    path: Path
    kind: str | None = None
    patient: str | None = field(default=None, repr=False)
    study: str | None = None
    series: str | None = None
    instance: str | None = None
    number: float = 0.0
    position: tuple[float, ...] = ()
    directions: tuple[float, ...] = ()

    def normal(self) -> NDArray[np.float64] | None:
        """The direction that slices follow each other in, (3,)."""
        if (len(self.position), len(self.directions)) != (3, 6):
            return None
        found = np.cross(self.directions[:3], self.directions[3:])
        length = float(np.linalg.norm(found))
        return found / length if length > 0.5 else None


@dataclass(frozen=True)
class Arranged:
    """Files in the order in which they are read.

    paths: those of a series together, where the first of them was, and by their place in the
    patient. skipped: what is no picture of a patient, with what it is. repeated: files that say
    they are the very object that another file is, with that file; they are not among the paths.
    remarks: what a user should know of the series.
    """

    paths: list[Path]
    skipped: dict[Path, str]
    repeated: dict[Path, Path]
    remarks: list[str]


def read_sources(paths: Iterable[Path]) -> dict[Path, Source]:
    """What each DICOM file among `paths` says of where it comes from; see Source.whose.

    Without pydicom nothing is told.
    """
    return {path: Source(path, each.patient, each.study, each.series, each.instance)
            for path, each in _read_headers(paths).items()}


def arrange(paths: Sequence[Path], named: Collection[Path] = frozenset()) -> Arranged:
    """Put the files of DICOM series in order; other files, and those `named`, stay in theirs.

    Without pydicom nothing can be told, and reading the first file says what is needed.
    """
    headers = _read_headers(path for path in paths if path not in named)
    skipped = {path: each.kind for path, each in headers.items() if each.kind}
    repeated: dict[Path, Path] = {}
    first: dict[str, Path] = {}
    series = defaultdict[str, list[Header]](list)
    for path, each in headers.items():
        if each.kind:
            continue
        if each.instance and first.setdefault(each.instance, path) != path:
            repeated[path] = first[each.instance]
        elif each.series:
            series[each.series].append(each)
    order: list[Path] = []
    remarks: list[str] = []
    done = {*skipped, *repeated}
    for path in paths:
        if path in named:
            order.append(path)
        elif path not in done:
            slices = series.get(headers[path].series or "", []) if path in headers else []
            group = _sort(slices, remarks) if slices else [path]
            order += group
            done.update(group)
    return Arranged(order, skipped, repeated, remarks)


def _read_headers(paths: Iterable[Path]) -> dict[Path, Header]:
    files = [path for path in dict.fromkeys(paths) if is_dicom_file(path)]
    if not files:
        return {}
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return {}
    with silent_libraries(), ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(_read_header, files), strict=True))


def _read_header(path: Path) -> Header:
    try:
        dataset = read_for_order(path)
    except Exception:
        # Whatever is wrong with it, the decoder names it: this only looks for an order.
        return Header(path)
    kind = tell_what_it_is(dataset)
    patient, study, series, instance = (
        next(iter(read_texts(dataset, keyword)), None) for keyword in (
            "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"))
    try:
        number, position, directions = (read_numbers(dataset, keyword) for keyword in (
            "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient"))
    except DataError:
        number, position, directions = (), (), ()
    return Header(path, kind, patient, study, series, instance, number[0] if number else 0.0,
                  position, directions)


def _sort(slices: list[Header], remarks: list[str]) -> list[Path]:
    """The slices of a series along their normal; by their numbers where they are not parallel."""
    by_number = sorted(slices, key=lambda each: each.number)
    normal = slices[0].normal()
    parallel = normal is not None and all(
        (other := each.normal()) is not None and float(other @ normal) > 0.999 for each in slices)
    if len(slices) < 2 or not parallel:
        return [each.path for each in by_number]
    assert normal is not None
    ordered = sorted(by_number, key=lambda each: float(np.array(each.position) @ normal))
    _look_for_gaps(ordered, normal, remarks)
    return [each.path for each in ordered]


def _look_for_gaps(ordered: list[Header], normal: NDArray[np.float64], remarks: list[str]) -> None:
    places = np.array([each.position for each in ordered])
    steps = np.diff(places @ normal)
    apart = np.flatnonzero(steps > 0.01)  # mm; several slices of one place are no gap
    if not len(apart):
        return
    ratios = steps[apart] / _find_usual(steps[apart])
    gaps = np.flatnonzero(ratios > _GAP)
    if len(gaps):
        missing = round(float((ratios[gaps] - 1).sum()))
        after, before = ordered[apart[gaps[0]]].path, ordered[apart[gaps[0]] + 1].path
        remarks.append(f"{after}: {missing} slice{'s' if missing > 1 else ''} of its series"
                       f" {'are' if missing > 1 else 'is'} missing, the first between it and"
                       f" {before}")
    way = places[-1] - places[0]
    cosine = float(way @ normal) / float(np.linalg.norm(way))
    tilt = float(np.degrees(np.arccos(min(cosine, 1.0))))
    if tilt > _TILTED:
        remarks.append(f"{ordered[0].path}: the gantry was tilted by {tilt:.1f} degrees: the slices"
                       " of its series are not stacked along their normal")


def _find_usual(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each step, (N,), the median of those around it."""
    width = min(_AROUND, len(steps))
    around = np.lib.stride_tricks.sliding_window_view(steps, width)
    return np.asarray(np.median(around, axis=1)[
        np.clip(np.arange(len(steps)) - width // 2, 0, len(around) - 1)])


def count_kinds(skipped: dict[Path, str]) -> str:
    """One line on the files that are no pictures of a patient, three of them by name."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(skipped.values()).most_common(8))
    more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return (f"skipped {len(skipped)} DICOM file{'s' if len(skipped) > 1 else ''} that"
            f" {'are' if len(skipped) > 1 else 'is'} no picture of a patient: {kinds}"
            f" ({', '.join(map(str, list(skipped)[:3]))}{more})")
