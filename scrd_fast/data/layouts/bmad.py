"""The layout of BMAD (Bao et al., 2024, https://arxiv.org/abs/2306.11876), six medical sets.

Sets with masks (brain, liver, RESC) have a level more, img/ and label/, than those without (chest,
histopathology, OCT2017). Copies of it that others distribute call label/ anomaly_mask/, and
Camelyon16 in MedIAnomaly has no valid/.
"""

from pathlib import Path

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import (
    SPLIT_FOLDERS,
    Parts,
    Tree,
    check_masks_used,
    index_masks,
    key_of,
    name_folders,
    remark_left_out,
    remark_masks,
)
from scrd_fast.errors import DataError

SHAPE = "train/good/, valid/ and test/ with good/ and Ungood/, each with img/ and label/ or without"
_LABELS = {"good": 0, "ungood": 1}
_MASKS = ("label", "anomaly_mask")


def recognises(tree: Tree) -> bool:
    return any(len(parts) > 2 and parts[0].lower() in SPLIT_FOLDERS and parts[1].lower() == "ungood"
               for parts in tree.images.values())


def read(tree: Tree) -> Found:
    """Raises DataError where an image lies in neither good/ nor Ungood/, where anomalous images are
    to train on, and where a mask is of no image."""
    places, masks, left_out = {}, {}, []
    for path, parts in tree.images.items():
        if parts[0].lower() not in SPLIT_FOLDERS:
            left_out.append(path)
        elif len(parts) > 3 and parts[2].lower() in _MASKS:
            masks[path] = (*parts[:2], *parts[3:])
        else:
            places[path] = parts
    of = index_masks(masks.items())
    items = [_read_image(tree, path, parts, of) for path, parts in places.items()]
    check_masks_used(masks, (item.mask for item in items))
    anomalous = ((item.path, item.mask) for item in items if item.label)
    return Found(items, [*remark_left_out(tree, left_out, f"not at a place of {SHAPE}"),
                         *remark_masks(tree.root, anomalous)])


def _read_image(tree: Tree, path: Path, parts: Parts, masks: dict[Parts, Path]) -> Item:
    split = SPLIT_FOLDERS[parts[0].lower()]
    label = _LABELS.get(parts[1].lower()) if len(parts) > 2 else None
    if label is None or (split == "train" and label == 1):
        inside = [each[1] if len(each) > 2 else "." for each in tree.images.values()
                  if each[0] == parts[0]]
        expected = "good/ alone" if split == "train" else "good/ and Ungood/"
        raise DataError(f"{tree.root / parts[0]}: expected {expected} ({SHAPE}), got"
                        f" {name_folders(inside)}")
    plain = (*parts[:2], *parts[3:]) if parts[2].lower() == "img" and len(parts) > 3 else parts
    return Item(path, label, masks.get(key_of(plain)), split=split)
