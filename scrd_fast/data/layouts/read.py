"""read_data_set: which layout a place has, and what its images are."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scrd_fast.data.layouts import (
    bids,
    bmad,
    brats2021,
    isic2018,
    labelled,
    medianomaly,
    mvtec,
    normals,
    table,
)
from scrd_fast.data.layouts.items import DataSet, Found, Item
from scrd_fast.data.layouts.patients import check_patients, find_patients, remark_patients
from scrd_fast.data.layouts.tree import NAMES, Tree, count, is_known, list_tree, name_some
from scrd_fast.errors import DataError, expect


@dataclass(frozen=True)
class Layout:
    """recognises: by the names of folders and files. read: what a recognised tree holds; it raises
    DataError where that is not what the layout says."""

    name: str
    recognises: Callable[[Tree], bool]
    read: Callable[[Tree], Found]


# The first that recognises a folder reads it: special shapes come before general ones.
LAYOUTS = (
    Layout("MedIAnomaly", medianomaly.recognises, medianomaly.read),
    Layout("ISIC 2018 task 3", isic2018.recognises, isic2018.read),
    Layout("BIDS", bids.recognises, bids.read),
    Layout("BMAD", bmad.recognises, bmad.read),
    Layout("BraTS2021 of MedIAnomaly", brats2021.recognises, brats2021.read),
    Layout("MVTec style", mvtec.recognises, mvtec.read),
    Layout("labelled folder", labelled.recognises, labelled.read),
    Layout("DICOM folder", normals.is_dicom_alone, normals.read),
    Layout("folder of normal images", normals.is_any, normals.read),
)


def read_data_set(
    where: str | os.PathLike[str], *, patient_from: str | None = None, apart: bool = True
) -> DataSet:
    """Which files of a data set are what: labels, masks, patients and splits; decodes no image.

    where: a folder in one of the layouts of docs/data_sets.md, a table of images (.csv, .tsv or
        Parquet) or a folder with one called data.csv, or one image file, which counts as normal.
    patient_from: a regular expression that is searched in each image's path, relative to the folder
        and with "/" between its parts. Its first group, or the whole match without groups, is the
        patient. It counts before all else; where it finds nothing, and without it, what the layout
        tells does, then DICOM's Patient ID, else the identifier of the study, else of the series.
    apart: whether a patient with images in two splits is refused; False is for who uses one split.

    Warns of files that are left out because they are no images. Raises DataError where a layout is
    recognised but not kept to, where anomalous images are to be trained on or folders of them seem
    to lie among normal ones, and where a patient has images in two splits (the message names the
    patient); InputError for an expression that does not compile or finds nothing; MissingExtra
    where Parquet needs pyarrow.
    """
    expect(isinstance(where, str | os.PathLike), "where", "a path", type(where).__name__)
    root = Path(where)
    inside = table.find_in(root)
    if inside is not None:
        name, found = "table", table.read(inside)
    elif root.is_dir():
        tree = list_tree(root, stacklevel=3)
        layout = next(each for each in LAYOUTS if each.recognises(tree))
        name, found = layout.name, layout.read(tree)
    else:
        name, found, root = *_read_file(root), root.parent
    _check_training(root, found.items)
    items, stand_ins = find_patients(found.items, root, patient_from)
    if apart:
        check_patients(items, stand_ins)
    return DataSet(name, tuple(items), (*found.remarks, *_remark_unlabelled(items),
                                        *remark_patients(items, stand_ins)))


def _read_file(path: Path) -> tuple[str, Found]:
    expected = f"a folder, a table ({', '.join(table.SUFFIXES)}) or an image ({NAMES})"
    if not path.is_file():
        kind = "something else" if os.path.lexists(path) else "no such place"
        raise DataError(f"{path}: expected {expected}, got {kind}")
    try:
        image = is_known(path)
        tabular = path.suffix.lower() in table.SUFFIXES or table.is_parquet(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if image:
        return "one file", Found([Item(path, 0)], ["no labels: 1 file taken as normal"])
    if tabular:
        return "table", table.read(path)
    raise DataError(f"{path}: expected {expected}, got another file")


def _check_training(root: Path, items: list[Item]) -> None:
    anomalous = [item.path for item in items if item.split == "train" and item.label == 1]
    if anomalous:
        raise DataError(f"{root}: expected normal images in split train, got"
                        f" {count(len(anomalous), 'anomalous one')}: {name_some(root, anomalous)}")


def _remark_unlabelled(items: list[Item]) -> list[str]:
    """One line on the images without a label among others that have one; see DataSet.normals."""
    without = sum(item.label is None for item in items)
    if without in (0, len(items)):
        return []
    return [f"{without} of {count(len(items), 'file')} have no label: for others have one, these"
            " are neither trained on nor taken as normal"]
