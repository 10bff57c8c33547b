"""The files below a data set's folder, and the mask that belongs to an image."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from scrd_fast.data.decode.read import NAMES, SUFFIXES, is_known
from scrd_fast.data.listing import list_images
from scrd_fast.errors import DataError

Parts = tuple[str, ...]

#: What folders of normal images are called, see is_normal; "good" says so of folders alone.
NORMAL = ("good", "normal", "healthy", "control", "controls", "healthy control",
          "healthy controls", "healthy volunteer", "healthy volunteers")
SPLIT_FOLDERS = {"train": "train", "training": "train", "validation": "validation",
                 "valid": "validation", "val": "validation", "test": "test", "testing": "test"}
_SUFFIX = re.compile(rf"({'|'.join(map(re.escape, SUFFIXES))})$", re.IGNORECASE)


@dataclass(frozen=True)
class Tree:
    """A folder and its images: for each path, sorted, its parts below the root."""

    root: Path
    images: Mapping[Path, Parts]

    def has_file(self, name: str) -> bool:
        return (self.root / name).is_file()

    def top(self) -> set[str]:
        """The folders directly below the root that hold images, in lower case."""
        return {parts[0].lower() for parts in self.images.values() if len(parts) > 1}


def list_tree(root: Path, stacklevel: int) -> Tree:
    """All images below a folder; other files are left out with a warning, as list_images says.

    A file that is named like an image counts as one whatever is in it (nothing, or the placeholder
    of a file that was not fetched): without it the data set would be another. Reading it says what
    is wrong. Raises DataError for a folder that cannot be looked into.
    """
    paths = list_images(root, is_known, NAMES, stacklevel=stacklevel + 1)
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: expected a folder that can be read, got one that cannot")
    return Tree(root, {path: path.relative_to(root).parts for path in paths})


def is_normal(folder: str) -> bool:
    """Whether a folder's name says that its images are normal: one of NORMAL, in any case, also
    with "_" or "-" for a space."""
    return re.sub("[_-]", " ", folder.lower()) in NORMAL


def strip_suffix(name: str) -> str:
    """A file's name without the suffix of an image; DICOM's names of digits and dots stay whole."""
    return _SUFFIX.sub("", name)


def index_masks(masks: Iterable[tuple[Path, Parts]], ending: str = "") -> dict[Parts, Path]:
    """Masks by the folders and the stem of the image that each is of.

    `ending` may follow the image's stem in the mask's name. Raises DataError where two masks are of
    one image.
    """
    found: dict[Parts, Path] = {}
    for path, parts in masks:
        key = (*parts[:-1], strip_suffix(parts[-1]).removesuffix(ending))
        if key in found:
            raise DataError(f"{path}: expected one mask for an image, got {found[key]} for the"
                            " same one")
        found[key] = path
    return found


def key_of(parts: Parts) -> Parts:
    """By which index_masks' result has the mask of an image with these parts."""
    return (*parts[:-1], strip_suffix(parts[-1]))


def remark_left_out(tree: Tree, left_out: list[Path], why: str) -> list[str]:
    """One line on images that the layout has no place for, or none."""
    if not left_out:
        return []
    return [f"{count(len(left_out), 'image')} left out, {why}: {name_some(tree.root, left_out)}"]


def remark_masks(root: Path, items: Iterable[tuple[Path, Path | None]]) -> list[str]:
    """One line where some anomalous images have a mask and others have none; given as pairs."""
    pairs = list(items)
    without = [path for path, mask in pairs if mask is None]
    if not without or len(without) == len(pairs):
        return []
    return [f"{len(without)} of {count(len(pairs), 'anomalous image')} without a mask:"
            f" {name_some(root, without)}"]


def check_masks_used(masks: Iterable[Path], used: Iterable[Path | None]) -> None:
    """Raise DataError for the first mask of no image: the names do not fit, or images miss."""
    left = sorted(set(masks) - set(used))
    if left:
        raise DataError(f"{left[0]}: expected an image that this mask is of, got none of its name"
                        + (f" (nor for {len(left) - 1} more masks)" if len(left) > 1 else ""))


def name_some(root: Path | None, paths: list[Path]) -> str:
    """Up to three paths, relative to the root, as they are without."""
    shown = ", ".join(str(path) if root is None else relative(root, path) for path in paths[:3])
    return shown + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")


def name_folders(names: Iterable[str]) -> str:
    """Folders with the number of their images, up to eight: "a/ (3), b/ (1)"."""
    counts = sorted(Counter(names).items())
    shown = ", ".join(f"{name}/ ({number})" for name, number in counts[:8])
    return shown + (f" and {len(counts) - 8} more" if len(counts) > 8 else "")


def relative(root: Path, path: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
