"""The files that are scored where somebody names files, folders, tables and data sets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scrd_fast.data.decode.find import Found, arrange_files
from scrd_fast.data.decode.read import NAMES, is_known
from scrd_fast.data.layouts import Item, bids, bmad, brats2021, mvtec, read_data_set, table
from scrd_fast.data.layouts.read import LAYOUTS
from scrd_fast.data.layouts.tree import Tree
from scrd_fast.data.listing import list_images
from scrd_fast.errors import DataError

# Layouts that have masks, which are files like images and are none.
_WITH_MASKS = (bids, bmad, brats2021, mvtec)


@dataclass(frozen=True)
class ToScore(Found):
    """items: what a data set says of its files, which may be nothing."""

    items: dict[Path, Item]


def find_to_score(places: Sequence[Path], stacklevel: int = 2) -> ToScore:
    """The image files of each place, in the order of places.

    A file stands for itself, whatever it is; a folder for all images below it, without masks where
    it is a data set that has some; a table (CSV, Parquet) or the folder of one for the images that
    it names. Series come as find_files has them. Raises DataError where a folder has no image,
    where none of the places exists, and what read_data_set raises.
    """
    if places and not any(map(os.path.lexists, places)):
        raise DataError(f"{places[0]}: expected an image file, a folder or a table, got no such"
                        " place")
    paths: list[Path] = []
    refused: dict[Path, str] = {}
    items: dict[Path, Item] = {}
    for place in places:
        listed = _list(place, stacklevel + 1)
        if listed is None:
            paths.append(place)
            continue
        found = arrange_files(list(listed), stacklevel=stacklevel + 1)
        paths += found.paths
        refused |= found.refused
        items |= {path: item for path, item in listed.items() if item is not None}
    return ToScore(list(dict.fromkeys(paths)), refused, items)


def _list(place: Path, stacklevel: int) -> Mapping[Path, Item | None] | None:
    """The images of a folder or table; None of another file, and of what is not there."""
    if table.find_in(place) is not None or _is_table(place):
        return {item.path: item for item in read_data_set(place, apart=False).items}
    if not os.path.isdir(place):
        return None
    paths = list_images(place, is_known, NAMES, stacklevel + 1)
    tree = Tree(place, {path: path.relative_to(place).parts for path in paths})
    layout = next(each for each in LAYOUTS if each.recognises(tree))
    if layout.read in [each.read for each in _WITH_MASKS]:
        return {item.path: item for item in layout.read(tree).items}
    return dict.fromkeys(paths)


def _is_table(place: Path) -> bool:
    return place.suffix.lower() in table.SUFFIXES and place.is_file()
