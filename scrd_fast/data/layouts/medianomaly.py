"""The layout of MedIAnomaly (Cai et al., 2024, https://arxiv.org/abs/2404.04518): images/ and
data.json, as in RSNA, VinCXR, BrainTumor and LAG. Its other sets have layouts of their own."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import Tree, name_folders, remark_left_out
from scrd_fast.errors import DataError

SHAPE = 'images/ and data.json: {"train": {"0": [names]}, "test": {"0": [names], "1": [names]}}'
_FILE = "data.json"


def recognises(tree: Tree) -> bool:
    """A folder of normal images may hold some data.json that means something else."""
    return tree.has_file(_FILE) and (
        "images" in tree.top() or {"train", "test"} <= set(_load(tree.root / _FILE, mend=True)))


def read(tree: Tree) -> Found:
    """The images of "unlabeled", from which semi-supervised methods draw, are left out.

    Raises DataError where data.json has another shape, an image twice, or one that is not there.
    """
    where = tree.root / _FILE
    table = _load(where)
    if "images" not in tree.top():
        inside = (parts[0] for parts in tree.images.values() if len(parts) > 1)
        raise DataError(f"{tree.root}: expected the folder images/ beside data.json, got"
                        f" {name_folders(inside) or 'images without a folder'}")
    items = [Item(tree.root / "images" / name, label, split=split)
             for split, label in (("train", 0), ("test", 0), ("test", 1))
             for name in _names(where, table, split, str(label))]
    _check(where, tree, items)
    used = {item.path for item in items}
    others = [path for path in tree.images if path not in used]
    return Found(items, remark_left_out(tree, others, "for data.json has them neither to train on"
                                        " (as known to be normal) nor to test on"))


def _load(where: Path, mend: bool = False) -> dict[str, Any]:
    """The object in the file; with mend, an empty one for what is no JSON object."""
    try:
        table = json.loads(where.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if mend:
            return {}
        raise DataError(f"{where}: expected {SHAPE}, got no JSON: {error}") from error
    if isinstance(table, dict):
        return table
    if mend:
        return {}
    raise DataError(f"{where}: expected {SHAPE}, got a {type(table).__name__}")


def _names(where: Path, table: dict[str, Any], split: str, label: str) -> list[str]:
    part = table.get(split)
    names = part.get(label) if isinstance(part, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        found = sorted(part) if isinstance(part, dict) else sorted(table)
        raise DataError(f'{where}: expected a list of names as "{split}" "{label}" ({SHAPE}), got'
                        f" {found}")
    for name in names:
        inside = PurePosixPath(name)
        if not inside.parts or inside.is_absolute() or ".." in inside.parts:
            raise DataError(f"{where}: expected names of files in images/, got {name!r}")
    return names


def _check(where: Path, tree: Tree, items: list[Item]) -> None:
    first: dict[Path, Item] = {}
    missing = []
    for item in items:
        if item.path in first:
            other = first[item.path]
            raise DataError(f"{where}: expected each name once, got {item.path.name} in"
                            f' "{other.split}" "{other.label}" and "{item.split}" "{item.label}"')
        first[item.path] = item
        if item.path not in tree.images:
            missing.append(item.path.relative_to(tree.root / "images").as_posix())
    if missing:
        raise DataError(f"{where}: expected {len(items)} images in images/, got all but"
                        f" {len(missing)}: {', '.join(missing[:3])}"
                        + (" and others" if len(missing) > 3 else ""))
