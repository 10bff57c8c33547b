"""A folder of normal images, or of DICOM files of normal images: no names mean anything."""

from scrd_fast.data.decode.read import is_dicom_file
from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import NORMAL, SPLIT_FOLDERS, Tree, count
from scrd_fast.errors import DataError

SHAPE = "normal images, with or without subfolders"
_WITHIN = {*SPLIT_FOLDERS, *NORMAL, "ungood", "ground_truth"}


def is_dicom_alone(tree: Tree) -> bool:
    return all(map(is_dicom_file, tree.images))


def is_any(tree: Tree) -> bool:
    return True


def read(tree: Tree) -> Found:
    """All images as normal ones to train on; raises DataError where a subfolder looks like a data
    set of its own, whose anomalous images would be among them."""
    nested = {parts[0] for parts in tree.images.values()
              if len(parts) > 2 and parts[1].lower() in _WITHIN}
    nested |= {path.parent.name for name in ("data.json", "dataset_description.json")
               for path in tree.root.glob(f"*/{name}")}
    if nested:
        raise DataError(f"{tree.root}: expected one data set, got a folder that holds"
                        f" {', '.join(sorted(nested)[:3])}, each of which looks like one; give"
                        " that folder")
    remark = f"no labels: {count(len(tree.images), 'file')} taken as normal"
    return Found([Item(path, 0) for path in tree.images], [remark])
