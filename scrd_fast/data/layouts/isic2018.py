"""ISIC 2018, task 3, as it is downloaded (https://challenge.isic-archive.com/data/#2018).

Melanocytic naevi (NV) are the normal images, as in MedIAnomaly (https://arxiv.org/abs/2404.04518).
"""

import re
from pathlib import Path

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.rows import read_rows
from scrd_fast.data.layouts.tree import Tree, count, remark_left_out, strip_suffix
from scrd_fast.errors import DataError

SHAPE = ("ISIC2018_Task3_<part>_Input/ and ISIC2018_Task3_<part>_GroundTruth/ with its .csv, for"
         " Training, Validation and Test")
_INPUT = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_Input")
_SPLITS = {"Training": "train", "Validation": "validation", "Test": "test"}
CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
NORMAL = "NV"


def recognises(tree: Tree) -> bool:
    return any(_INPUT.fullmatch(parts[0]) for parts in tree.images.values())


def read(tree: Tree) -> Found:
    """Images to train on that are not normal are left out; the class is the others' group.

    Raises DataError where a table is missing or does not name one class of an image.
    """
    parts_of = {path: _INPUT.fullmatch(parts[0]) for path, parts in tree.images.items()}
    classes = {part: read_classes(_find_table(tree.root, part))
               for part in sorted({match[1] for match in parts_of.values() if match})}
    items, untold, anomalous = [], [], 0
    for path, match in parts_of.items():
        kind = classes[match[1]].get(strip_suffix(path.name)) if match else None
        if match is None or kind is None:
            untold.append(path)
            continue
        label = int(kind != NORMAL)
        if label and match[1] == "Training":
            anomalous += 1
            continue
        items.append(Item(path, label, split=_SPLITS[match[1]],
                          group=kind if label else None))
    remarks = remark_left_out(tree, untold, "for no table of the ground truth names them")
    if anomalous:
        remarks.append(f"{count(anomalous, 'image')} of Training left out, for they are anomalous")
    return Found(items, remarks)


def _find_table(root: Path, part: str) -> Path:
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    # Downloads unpack with the folder, but the table is also found without it.
    where = next((path for path in (root / name / f"{name}.csv", root / f"{name}.csv")
                  if path.is_file()), None)
    if where is None:
        raise DataError(f"{root}: expected {name}/{name}.csv ({SHAPE}), got no such file")
    return where


def read_classes(table: Path) -> dict[str, str]:
    """Map each image, by its name without suffix, to its class: the one column of its row that is
    1, of CLASSES.

    Raises DataError for a table without rows or one of these columns, for a row without one class,
    and for an image that is there twice.
    """
    columns, rows = read_rows(table)
    missing = [name for name in ("image", *CLASSES) if name.lower() not in columns]
    if missing:
        raise DataError(f"{table}: expected a column {missing[0]}, got {', '.join(columns)}")
    if not rows:
        raise DataError(f"{table}: expected rows below the header, got none")
    classes: dict[str, str] = {}
    for number, row in rows:
        values = {name: row[name.lower()] for name in CLASSES}
        ones = [name for name, value in values.items() if value in ("1", "1.0")]
        if len(ones) != 1 or not set(values.values()) <= {"0", "0.0", "1", "1.0"}:
            raise DataError(f"{table}: row {number}: expected 1 for one class and 0 for the others,"
                            f" got {', '.join(values.values())}")
        image = strip_suffix(row["image"])
        if image in classes:
            raise DataError(f"{table}: row {number}: expected each image once, got {image} again")
        classes[image] = ones[0]
    return classes
