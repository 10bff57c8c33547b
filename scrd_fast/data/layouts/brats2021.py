"""BraTS2021 as MedIAnomaly prepares it (https://arxiv.org/abs/2404.04518): slices of FLAIR."""

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import (
    Parts,
    Tree,
    check_masks_used,
    index_masks,
    name_folders,
    remark_left_out,
    remark_masks,
    strip_suffix,
)
from scrd_fast.errors import DataError

SHAPE = "train/, test/normal/, test/tumor/, test/annotation/ with seg for flair in its names"


def recognises(tree: Tree) -> bool:
    return any(map(_is_mask, tree.images.values()))


def _is_mask(parts: Parts) -> bool:
    return len(parts) > 2 and (parts[0].lower(), parts[1].lower()) == ("test", "annotation")


def read(tree: Tree) -> Found:
    """Raises DataError where test/ holds other folders, and where a mask is of no image."""
    masks, items, left_out = {}, [], []
    for path, parts in tree.images.items():
        if _is_mask(parts):
            masks[path] = (strip_suffix(parts[-1]),)
    of = index_masks(masks.items())
    for path, parts in tree.images.items():
        top, kind = parts[0].lower(), parts[1].lower() if len(parts) > 2 else ""
        if path in masks:
            continue
        if top == "train" and len(parts) > 1:
            items.append(Item(path, 0))
        elif top == "test" and kind == "normal":
            items.append(Item(path, 0, split="test"))
        elif top == "test" and kind == "tumor":
            name = strip_suffix(parts[-1]).replace("flair", "seg")
            items.append(Item(path, 1, of.get((name,)), split="test", group=parts[1]))
        elif top == "test":
            inside = (each[1] if len(each) > 2 else "." for each in tree.images.values()
                      if each[0] == parts[0])
            raise DataError(f"{tree.root / parts[0]}: expected normal/, tumor/ and annotation/"
                            f" ({SHAPE}), got {name_folders(inside)}")
        else:
            left_out.append(path)
    check_masks_used(masks, (item.mask for item in items))
    anomalous = ((item.path, item.mask) for item in items if item.label)
    return Found(items, [*remark_left_out(tree, left_out, f"not at a place of {SHAPE}"),
                         *remark_masks(tree.root, anomalous)])
