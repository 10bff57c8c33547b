"""ISIC 2018, task 3, as it is downloaded (https://challenge.isic-archive.com/data/#2018).

Melanocytic naevi (NV) are the normal images, as in MedIAnomaly (https://arxiv.org/abs/2404.04518).
"""

import re
from pathlib import Path

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.rows import Row, read_rows
from scrd_fast.data.layouts.tree import Tree, count, remark_left_out, strip_suffix
from scrd_fast.errors import DataError

SHAPE = ("ISIC2018_Task3_<part>_Input/ and ISIC2018_Task3_<part>_GroundTruth/ with its .csv, for"
         " Training, Validation and Test")
_INPUT = re.compile(r"ISIC2018_Task3_(Training|Validation|Test)_Input")
_SPLITS = {"Training": "train", "Validation": "validation", "Test": "test"}
_CLASSES = ("mel", "nv", "bcc", "akiec", "bkl", "df", "vasc")


def recognises(tree: Tree) -> bool:
    return any(_INPUT.fullmatch(parts[0]) for parts in tree.images.values())


def read(tree: Tree) -> Found:
    """Images to train on that are not normal are left out; the class is the others' group.

    Raises DataError where a table is missing or does not name one class of an image.
    """
    parts_of = {path: _INPUT.fullmatch(parts[0]) for path, parts in tree.images.items()}
    classes = {part: _read_classes(tree.root, part)
               for part in sorted({match[1] for match in parts_of.values() if match})}
    items, untold, anomalous = [], [], 0
    for path, match in parts_of.items():
        kind = classes[match[1]].get(strip_suffix(path.name)) if match else None
        if match is None or kind is None:
            untold.append(path)
            continue
        label = int(kind != "nv")
        if label and match[1] == "Training":
            anomalous += 1
            continue
        items.append(Item(path, label, split=_SPLITS[match[1]],
                          group=kind.upper() if label else None))
    remarks = remark_left_out(tree, untold, "for no table of the ground truth names them")
    if anomalous:
        remarks.append(f"{count(anomalous, 'image')} of Training left out, for they are anomalous")
    return Found(items, remarks)


def _read_classes(root: Path, part: str) -> dict[str, str]:
    """Each image's class, by the image's name without suffix."""
    name = f"ISIC2018_Task3_{part}_GroundTruth"
    # Downloads unpack with the folder, but the table is also found without it.
    where = next((path for path in (root / name / f"{name}.csv", root / f"{name}.csv")
                  if path.is_file()), None)
    if where is None:
        raise DataError(f"{root}: expected {name}/{name}.csv ({SHAPE}), got no such file")
    columns, rows = read_rows(where)
    missing = [each for each in ("image", *_CLASSES) if each not in columns]
    if missing:
        raise DataError(f"{where}: expected a column {missing[0].upper()}, got"
                        f" {', '.join(columns)}")
    return {strip_suffix(row["image"]): _read_class(f"{where}: row {number}", row)
            for number, row in rows}


def _read_class(where: str, row: Row) -> str:
    chosen = [name for name in _CLASSES if row[name] in ("1", "1.0")]
    zeros = [name for name in _CLASSES if row[name] in ("0", "0.0")]
    if len(chosen) != 1 or len(zeros) != len(_CLASSES) - 1:
        raise DataError(f"{where}: expected 1.0 for one class and 0.0 for the others, got"
                        f" {', '.join(row[name] for name in _CLASSES)}")
    return chosen[0]
