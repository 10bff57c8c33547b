"""BIDS (https://bids-specification.readthedocs.io): anatomical NIfTI images by subject, labels from
participants.tsv, masks of lesions among the derivatives or beside the images."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from scrd_fast.data.layouts.items import SPLITS, Found, Item, choose_split
from scrd_fast.data.layouts.rows import Row, read_rows
from scrd_fast.data.layouts.tree import (
    NORMAL,
    SPLIT_FOLDERS,
    Parts,
    Tree,
    count,
    name_folders,
    name_some,
    remark_left_out,
)
from scrd_fast.errors import DataError

SHAPE = "sub-<name>/[ses-<name>/]anat/*.nii.gz"
_PARTICIPANTS = "participants.tsv"
#: Columns that may tell who is normal, in this order.
LABEL_COLUMNS = ("label", "group", "diagnosis", "dx", "condition")
#: What such a column calls the normal ones. Other values are anomalous only where one of these is
#: among them or all are of the next: "young" and "old" are no labels.
NORMAL_WORDS = {*NORMAL[1:], "ctrl", "con", "hc", "hv", "cn", "nc"}
_ANOMALOUS_WORDS = {"anomalous", "abnormal", "anomaly", "patient", "patients", "pat", "case",
                    "lesion", "tumor", "tumour", "stroke"}
_UNKNOWN = {"", "n/a"}
_MASKS = {"mask", "roi", "lesion", "dseg", "seg", "msk"}
_NO_IMAGES = {*_MASKS, "probseg", "defacemask"}
#: Found in the names of what shows anomalies.
LESION = re.compile("lesion|tumou?r|stroke|infarct|wmh|anomal|abnormal", re.IGNORECASE)
# Entities that say what a mask shows or how fine its grid is, not which image it was drawn on.
_OF_MASK = {"desc", "label", "res", "den"}


@dataclass(frozen=True)
class Name:
    """sub-01_ses-2_acq-x_FLAIR_roi.nii.gz: entities {sub: 01, ses: 2, acq: x}, bare ("FLAIR",),
    suffix "roi"."""

    entities: Mapping[str, str] = field(default_factory=dict)
    bare: tuple[str, ...] = ()
    suffix: str = ""


def recognises(tree: Tree) -> bool:
    # Results have a description, too, and may lie beside images that are no data set.
    found = tree.images.values()
    return any(map(_is_anatomical, found)) or (
        tree.has_file("dataset_description.json")
        and any(folder.startswith("sub-") for parts in found for folder in parts[:-1]))


def read(tree: Tree) -> Found:
    """All images in anat/ folders of subjects; the group is the suffix (T1w, FLAIR) where there are
    several, else what the column of the labels says of an anomalous one.

    Splits come from a column `split` of participants.tsv, else by items.choose_split. Raises
    DataError where there is no image, where participants.tsv contradicts itself, and where two
    masks are of one image.
    """
    images, masks, left_out, aside = {}, {}, [], []
    for path, parts in tree.images.items():
        name = _parse(parts[-1])
        raw = _is_anatomical(parts)
        if raw and name.suffix not in _NO_IMAGES:
            images[path] = name
        elif name.suffix in _MASKS and _is_lesion(parts, name):
            masks[path] = name
        elif name.suffix in _NO_IMAGES:
            aside.append(path)
        elif parts[0] != "derivatives":
            left_out.append(path)
    if not images:
        top = (parts[0] for parts in tree.images.values())
        raise DataError(f"{tree.root}: expected {SHAPE}, got {name_folders(top)}")
    of = _match(masks, images)
    labels, splits, kinds, remarks = _read_participants(tree.root)
    suffixes = Counter(name.suffix for name in images.values())
    if len(suffixes) > 1:
        shown = ", ".join(f"{suffix} ({times})" for suffix, times in sorted(suffixes.items()))
        remarks.append(f"images of several kinds: {shown}, which are the groups; a model of one"
                       " kind needs a table of its files")
    items = []
    for path, name in images.items():
        subject, mask = name.entities["sub"], of.get(path)
        label = labels.get(subject, 1 if mask else None)
        kind = kinds.get(subject, "lesion") if label else None
        items.append(Item(path, label, mask, subject, splits.get(subject, ""),
                          name.suffix if len(suffixes) > 1 else kind))
    if not splits:
        split = choose_split(item.label for item in items)
        if split == "test":
            remarks.append("no split told: all images are for testing, for some are anomalous; a"
                           f" column split in {_PARTICIPANTS} tells")
        items = [replace(item, split=split) for item in items]
    else:
        _check_splits(tree.root, items)
    remarks += remark_left_out(tree, left_out, f"not in {SHAPE}")
    unused = sorted(set(masks) - set(of.values()))
    if unused:
        remarks.append(f"{count(len(unused), 'lesion mask')} fit no image of anat/ by name (another"
                       f" space?): {name_some(tree.root, unused)}")
    if aside:
        remarks.append(f"{count(len(aside), 'mask')} not used, for the name does not say that it is"
                       f" of a lesion: {name_some(tree.root, aside)}")
    return Found(items, remarks)


def _is_anatomical(parts: Parts) -> bool:
    """Whether parts are sub-<name>/[ses-<name>/]anat/<file of that subject>.nii[.gz]."""
    folders = parts[1:-1]
    return (len(parts) > 2 and parts[0].startswith("sub-")
            and parts[-1].startswith(f"{parts[0]}_") and parts[-1].endswith((".nii", ".nii.gz"))
            and folders[-1] == "anat"
            and (len(folders) == 1 or (len(folders) == 2 and folders[0].startswith("ses-"))))


def _parse(file: str) -> Name:
    *front, suffix = file.split(".")[0].split("_")
    entities = dict(piece.split("-", 1) for piece in front if "-" in piece)
    return Name(entities, tuple(piece for piece in front if "-" not in piece), suffix)


def _is_lesion(parts: Parts, name: Name) -> bool:
    said = [name.suffix, *(name.entities.get(each, "") for each in ("desc", "label"))]
    if parts[0] == "derivatives":
        said.append(parts[1])
    return name.suffix == "roi" or any(map(LESION.search, said))


def _match(masks: Mapping[Path, Name], images: Mapping[Path, Name]) -> dict[Path, Path]:
    """Masks by image. One is of all images of its subject whose names do not contradict its own."""
    by_subject: dict[str | None, list[tuple[Path, Name]]] = {}
    for path, name in images.items():
        by_subject.setdefault(name.entities.get("sub"), []).append((path, name))
    found: dict[Path, Path] = {}
    for mask, said in masks.items():
        for path, name in by_subject.get(said.entities.get("sub"), []):
            if not _fits(said, name):
                continue
            if path in found:
                raise DataError(f"{path}: expected one lesion mask, got {found[path]} and {mask};"
                                " a table (CSV) can name the one to use")
            found[path] = mask
    return found


def _fits(mask: Name, image: Name) -> bool:
    native = ("orig", image.suffix)
    return (all(each == image.suffix for each in mask.bare)
            and all(image.entities.get(key) == value or (key == "space" and value in native)
                    for key, value in mask.entities.items() if key not in _OF_MASK))


def _read_participants(
    root: Path,
) -> tuple[dict[str, int], dict[str, str], dict[str, str], list[str]]:
    """Label, split and kind by subject (without "sub-"), where they are told, and remarks."""
    where = root / _PARTICIPANTS
    if not where.is_file():
        return {}, {}, {}, [f"no {_PARTICIPANTS}: nothing tells who is normal but lesion masks"]
    columns, rows = read_rows(where)
    if "participant_id" not in columns:
        raise DataError(f"{where}: expected a column participant_id, got {', '.join(columns)}")
    by_subject: dict[str, Row] = {}
    for number, row in rows:
        subject = row["participant_id"].removeprefix("sub-")
        if subject in by_subject:
            raise DataError(f"{where}: row {number}: expected each participant once, got one"
                            " again")
        by_subject[subject] = row
    splits = _read_splits(where, by_subject) if "split" in columns else {}
    for column in LABEL_COLUMNS:
        values = {subject: row[column] for subject, row in by_subject.items()
                  if column in row and row[column].lower() not in _UNKNOWN}
        # A number is a label in the column of that name; in others it may count anything.
        normal = NORMAL_WORDS | ({"0"} if column == "label" else set())
        anomalous = _ANOMALOUS_WORDS | ({"1"} if column == "label" else set())
        said = {value.lower() for value in values.values()}
        if said & normal or (said and said <= anomalous):
            labels = {subject: int(value.lower() not in normal)
                      for subject, value in values.items()}
            return labels, splits, values, [_say_labels(column, values, labels)]
    return {}, splits, {}, [
        f"{_PARTICIPANTS} does not tell who is normal; one of its columns"
        f" {', '.join(LABEL_COLUMNS)} can, with normal, control or healthy among its values; its"
        f" columns: {', '.join(columns)}"]


def _say_labels(column: str, values: dict[str, str], labels: dict[str, int]) -> str:
    kinds = [sorted({values[subject] for subject, each in labels.items() if each == label})[:8]
             for label in (0, 1)]
    return (f"labels from the column {column} of {_PARTICIPANTS}:"
            f" {', '.join(kinds[0]) or 'none'} normal, {', '.join(kinds[1]) or 'none'} anomalous")


def _read_splits(where: Path, by_subject: dict[str, Row]) -> dict[str, str]:
    for row in by_subject.values():
        if row["split"].lower() not in SPLIT_FOLDERS:
            raise DataError(f"{where}: expected {', '.join(SPLITS)} in the column split, got"
                            f" {row['split']!r}")
    return {subject: SPLIT_FOLDERS[row["split"].lower()] for subject, row in by_subject.items()}


def _check_splits(root: Path, items: list[Item]) -> None:
    without = [item.path for item in items if not item.split]
    if without:
        raise DataError(f"{root / _PARTICIPANTS}: expected a row for each subject, got none for"
                        f" that of {name_some(root, without)}")
