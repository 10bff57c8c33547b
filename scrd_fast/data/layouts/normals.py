"""A folder of normal images, or of DICOM files of such: no names mean anything, but none may speak
of anomalies."""

import re

from scrd_fast.data.decode.read import is_dicom_file
from scrd_fast.data.layouts.bids import LESION
from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import SPLIT_FOLDERS, Tree, count, is_normal, name_folders
from scrd_fast.errors import DataError

SHAPE = "normal images, with or without subfolders"
_WITHIN = {*SPLIT_FOLDERS, "ungood", "ground_truth"}
# Patients and cases are also what people call all that they have; these words leave no doubt.
_ANOMALIES = re.compile(f"{LESION.pattern}|ungood|diseased|malignant|defect", re.IGNORECASE)


def is_dicom_alone(tree: Tree) -> bool:
    return all(map(is_dicom_file, tree.images))


def is_any(tree: Tree) -> bool:
    return True


def read(tree: Tree) -> Found:
    """All images as normal ones to train on; raises DataError where anomalous ones may be among
    them: a subfolder looks like a data set of its own, or its name speaks of anomalies."""
    nested = {parts[0] for parts in tree.images.values()
              if len(parts) > 2 and (parts[1].lower() in _WITHIN or is_normal(parts[1]))}
    nested |= {path.parent.name for name in ("data.json", "dataset_description.json")
               for path in tree.root.glob(f"*/{name}")}
    if nested:
        raise DataError(f"{tree.root}: expected one data set, got a folder that holds"
                        f" {', '.join(sorted(nested)[:3])}, each of which looks like one; give"
                        " that folder")
    told = [name for parts in tree.images.values() for name in parts[:-1]
            if _ANOMALIES.search(name)]
    if told:
        raise DataError(f"{tree.root}: expected {SHAPE}, got folders that are named as anomalies"
                        f" are: {name_folders(told)}; give the folder of normal images alone, or"
                        " call it normal/ beside all others, or give a table that tells labels")
    remark = f"no labels: {count(len(tree.images), 'file')} taken as normal"
    return Found([Item(path, 0) for path in tree.images], [remark])
