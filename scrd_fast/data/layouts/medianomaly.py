"""The layout of MedIAnomaly (Cai et al., 2024, https://arxiv.org/abs/2404.04518): images/ and
data.json, as in RSNA, VinCXR, BrainTumor and LAG. Its other sets have layouts of their own."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from scrd_fast.data.layouts.items import Found, Item
from scrd_fast.data.layouts.tree import Tree, name_folders, remark_left_out
from scrd_fast.errors import DataError

LISTS = '{"train": {"0": [names]}, "test": {"0": [names], "1": [names]}}'
PARTS = (("train", 0), ("test", 0), ("test", 1))  #: (split, label) of each list
_FILE = "data.json"


def recognises(tree: Tree) -> bool:
    """A folder of normal images may hold some data.json that means something else."""
    return tree.has_file(_FILE) and ("images" in tree.top() or _has_splits(tree.root / _FILE))


def _has_splits(where: Path) -> bool:
    try:
        table = json.loads(where.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(table, dict) and {"train", "test"} <= set(table)


def read(tree: Tree) -> Found:
    """The images of "unlabeled", from which semi-supervised methods draw, are left out.

    Raises DataError where data.json has another shape, an image twice, or one that is not there.
    """
    where = tree.root / _FILE
    lists = read_lists(where)[0]
    if "images" not in tree.top():
        inside = (parts[0] for parts in tree.images.values() if len(parts) > 1)
        raise DataError(f"{tree.root}: expected the folder images/ beside data.json, got"
                        f" {name_folders(inside) or 'images without a folder'}")
    items = [Item(tree.root / "images" / name, label, split=split)
             for (split, label), names in lists.items() for name in _check_inside(where, names)]
    _check(where, tree, items)
    used = {item.path for item in items}
    others = [path for path in tree.images if path not in used]
    return Found(items, remark_left_out(tree, others, "for data.json has them neither to train on"
                                        " (as known to be normal) nor to test on"))


def read_lists(where: Path) -> tuple[dict[tuple[str, int], list[str]], bytes]:
    """The names of each of PARTS in a file of the shape LISTS, and the file's bytes.

    What else it holds is not read. Raises DataError for another shape.
    """
    try:
        data = where.read_bytes()
        table = json.loads(data)
    except OSError as error:
        raise DataError(f"{where}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected {LISTS}, got no JSON: {error}") from error
    if not isinstance(table, dict):
        raise DataError(f"{where}: expected {LISTS}, got a {type(table).__name__}")
    return {part: _names(where, table, *part) for part in PARTS}, data


def _names(where: Path, table: dict[str, Any], split: str, label: int) -> list[str]:
    part = table.get(split)
    names = part.get(str(label)) if isinstance(part, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        found = sorted(part) if isinstance(part, dict) else sorted(table)
        raise DataError(f'{where}: expected a list of names as "{split}" "{label}" ({LISTS}), got'
                        f" {found}")
    return names


def _check_inside(where: Path, names: list[str]) -> list[str]:
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
