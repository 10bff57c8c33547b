"""Who an image is of, and splits that keep a patient's images together."""

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.series import read_sources
from scrd_fast.data.layouts.items import Item
from scrd_fast.data.layouts.tree import count, relative
from scrd_fast.errors import DataError, expect, fail
from scrd_fast.records import is_number, is_whole

_WHAT_FOLLOWS = (", so that images of one may get into training and validation; --patient-from"
                 " (patient_from=) finds patients in paths")


def find_patients(
    items: list[Item], root: Path, pattern: str | None
) -> tuple[list[Item], set[str]]:
    """The items with their patients, and which of these are identifiers that stand for one.

    Patients are those of the expression, else those of the layout, else those that DICOM files
    name; where these name none, the identifier of the study or series, as image.Source.whose.
    """
    named = [None] * len(items) if pattern is None else _search(items, root, pattern)
    found = [replace(item, patient=name) if name else item
             for item, name in zip(items, named, strict=True)]
    told = read_sources(item.path for item in found if item.patient is None)
    stand_ins = {each.whose for each in told.values() if each.whose and not each.patient}
    return [replace(item, patient=told[item.path].whose) if item.path in told else item
            for item in found], stand_ins


def _search(items: list[Item], root: Path, pattern: str) -> list[str | None]:
    """What the expression finds in each path: its first group, or the whole match."""
    expect(isinstance(pattern, str), "patient_from", "a regular expression, or None",
           type(pattern).__name__)
    try:
        expression = re.compile(pattern)
    except re.error as error:
        fail("patient_from", "a regular expression", f"{pattern!r}: {error}")
    paths = [relative(root, item.path) for item in items]
    matches = [expression.search(path) for path in paths]
    found = [match[1 if expression.groups else 0] if match else None for match in matches]
    expect(any(found), "patient_from", "an expression that names the patient of at least one file",
           f"{pattern!r}, which finds nothing in {paths[0]} nor in any other of the"
           f" {count(len(paths), 'path')}")
    return found


def check_patients(items: Sequence[Item], stand_ins: Collection[str]) -> None:
    """Raise DataError for the first patient whose images lie in two splits; see find_patients."""
    first: dict[str, Item] = {}
    for item in items:
        if item.patient is None:
            continue
        other = first.setdefault(item.patient, item)
        if other.split != item.split:
            whose, why = f"patient {item.patient!r}", "where the name is not that of one patient"
            if item.patient in stand_ins:
                whose = "one DICOM study, or series, that tells no Patient ID"
                why = "where it is of several patients"
            raise DataError(
                f"{item.path}: expected all images of {whose} in split {other.split}, as"
                f" {other.path}, got this one in {item.split}; {why}, --patient-from"
                " (patient_from=) can tell them apart")


def remark_patients(items: Sequence[Item], stand_ins: Collection[str]) -> list[str]:
    """A line each on the files whose patient nothing tells, and on those that tell no more than a
    study or series; see find_patients."""
    unknown = sum(item.patient is None for item in items)
    by_study = sum(item.patient in stand_ins for item in items)
    files = count(len(items), "file")
    lines = []
    if unknown:
        which = ("no file tells its patient" if unknown == len(items) else
                 f"{unknown} of {files} tell no patient")
        lines.append(f"{which}: each file is taken for a patient of its own{_WHAT_FOLLOWS}")
    if by_study:
        lines.append(f"{by_study} of {files} tell a DICOM study or series, but no Patient ID: each"
                     f" of these is taken for a patient of its own{_WHAT_FOLLOWS}")
    return lines


def split_by_patient(
    patients: Sequence[str | None], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hold out whole patients; returns the indices of what stays and of what is held out, sorted.

    patients: whom each image is of, (N,); None: a patient of its own. share: of the images, above 0
    and below 1; patients are drawn from `seed` as long as one more brings the number of images
    nearer to it, at least one and never all. The same arguments give the same result.

    Raises InputError where there are fewer than two patients.
    """
    expect(is_number(share) and 0 < share < 1, "share", "a number above 0 and below 1", share)
    expect(is_whole(seed, 0), "seed", "an integer from 0", seed)
    members: dict[object, list[int]] = {}
    for index, patient in enumerate(patients):
        members.setdefault(index if patient is None else patient, []).append(index)
    groups = list(members.values())
    expect(len(groups) > 1, "data", "images of at least two patients to hold some out; give"
           " validation images, or tell patients apart by --patient-from (patient_from=)",
           count(len(groups), "patient"))
    number = len(patients)
    wanted = min(max(1, round(number * share)), number - 1)
    draw = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(len(groups))
    chosen: list[int] = []
    held = 0
    for place in draw:
        size = len(groups[place])
        if held + size < number and abs(held + size - wanted) < abs(held - wanted):
            chosen.append(int(place))
            held += size
    if not chosen:  # each patient alone has more than twice the images that are wanted
        chosen = [int(min(draw, key=lambda place: len(groups[place])))]
    out = np.zeros(number, bool)
    for place in chosen:
        out[groups[place]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)
