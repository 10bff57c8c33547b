"""The layout of MVTec AD (Bergmann et al., 2019, https://doi.org/10.1109/CVPR.2019.00982)."""

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import (
    NORMAL,
    SPLIT_FOLDERS,
    Tree,
    check_masks_used,
    index_masks,
    is_normal,
    key_of,
    name_folders,
    remark_left_out,
    remark_masks,
)
from scrd_fast.errors import DataError

SHAPE = "train/good/, test/good/, test/<kind>/, ground_truth/<kind>/<image>_mask.*"
_MASKS = "ground_truth"


def recognises(tree: Tree) -> bool:
    return any(SPLIT_FOLDERS.get(name) in ("train", "test") for name in tree.top())


def read(tree: Tree) -> Found:
    """Raises DataError where train/ holds more than normal images, where an image has no label, and
    where a mask is of no image."""
    masks = {path: parts for path, parts in tree.images.items()
             if parts[0].lower() == _MASKS and len(parts) > 2}
    of = index_masks(((path, parts[1:]) for path, parts in masks.items()), "_mask")
    for top in {parts[0] for parts in tree.images.values() if len(parts) > 1}:
        _check_folder(tree, top)
    items, left_out = [], []
    for path, parts in tree.images.items():
        split = SPLIT_FOLDERS.get(parts[0].lower()) if len(parts) > 1 else None
        if split is not None:
            kind = parts[1] if len(parts) > 2 else NORMAL[0]
            label = int(not is_normal(kind))
            # Sets with masks of normal images, all black, exist.
            items.append(Item(path, label, of.get(key_of(parts[1:])), split=split,
                              group=kind if label else None))
        elif path not in masks:
            left_out.append(path)
    check_masks_used(masks, (item.mask for item in items))
    anomalous = ((item.path, item.mask) for item in items if item.label)
    return Found(items, [*remark_left_out(tree, left_out, f"not at a place of {SHAPE}"),
                         *remark_masks(tree.root, anomalous)])


def _check_folder(tree: Tree, top: str) -> None:
    """Raise DataError where the subfolders of a split do not tell the labels of its images."""
    inside = [parts[1] if len(parts) > 2 else "." for parts in tree.images.values()
              if parts[0] == top]
    normal = [name for name in inside if is_normal(name)]
    split = SPLIT_FOLDERS.get(top.lower())
    if split == "train":
        good, expected = len(normal) == len(inside), "normal images alone, in good/"
    elif split == "test":
        good, expected = "." not in inside, "images in good/ and <kind>/ alone"
    else:
        good = split is None or set(inside) == {"."} or (bool(normal) and "." not in inside)
        expected = "images without folder, all normal, or good/ and <kind>/"
    if not good:
        raise DataError(f"{tree.root / top}: expected {expected} ({SHAPE}), got"
                        f" {name_folders(inside)}")
