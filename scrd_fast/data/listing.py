"""Finding image files in folders."""

import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable
from pathlib import Path

from scrd_fast.errors import DataError

# What systems leave in folders unasked, besides names that begin with a dot.
_OF_THE_SYSTEM = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "$recycle.bin",
                  "system volume information", "lost+found", "@eadir", "#recycle", "#snapshot",
                  "dicomdir"}


def is_paths(value: object) -> bool:
    """Whether `value` is one path (of a folder or file), or a list of paths."""
    one = value[0] if isinstance(value, list) and value else value
    return isinstance(one, str | os.PathLike)


def list_images(
    where: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    is_image: Callable[[Path], bool], formats: str, stacklevel: int = 2,
) -> list[Path]:
    """The image files below a folder (sorted), one file, or the given paths in their order.

    Of given paths, too, a folder stands for the images below it. `is_image` decides by a file's
    path what is one, of `formats` as messages name them. What cannot be looked at (dangling links,
    folders without permission; `is_image` may raise OSError) is one, too: reading it says why.
    Links to folders are followed, each folder once. Hidden files and those of the system
    (`._a.png`, `__MACOSX`, `Thumbs.db`) are no images; of all other files that are left out, one
    warning tells the number and kinds. `stacklevel` is that of the warning, 2 for the caller's
    line.

    Raises DataError where there is no image.
    """
    if isinstance(where, str | os.PathLike):
        if not os.path.lexists(where):
            raise DataError(f"{where}: expected a folder of images or an image file, got no such"
                            " place")
        where = [where]
    paths: list[Path] = []
    others: list[Path] = []
    for place in where:
        if not os.path.isdir(place):
            paths.append(Path(place))
            continue
        images, left_out = _search(Path(place), is_image)
        if not images:
            raise DataError(f"{place}: expected {formats} files below it, got none"
                            + (f"; {_summary(left_out, formats)}" if left_out else ""))
        paths += images
        others += left_out
    if not paths:
        raise DataError("images: expected at least one path, got an empty list")
    if others:
        warnings.warn(_summary(others, formats), stacklevel=stacklevel)
    return paths


def _search(root: Path, is_image: Callable[[Path], bool]) -> tuple[list[Path], list[Path]]:
    """The image files below a folder, and all others that are not the system's; both sorted."""
    images: list[Path] = []
    others: list[Path] = []
    seen: set[tuple[int, int]] = set()
    # Links come last: a folder that is also below the root itself keeps its own name.
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            images.append(folder)
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in _OF_THE_SYSTEM:
                continue
            path = Path(entry.path)
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                    continue
                image = is_image(path)
            except OSError:
                image = True
            (images if image else others).append(path)
    return sorted(images), sorted(others)


def _summary(others: list[Path], formats: str) -> str:
    """One line on files that are left out: how many of which kinds, and three of them."""
    kinds = Counter(map(_kind, others)).most_common()
    shown = [f"{count} {kind}" for kind, count in kinds[:8]]
    if len(kinds) > 8:
        shown.append(f"{sum(count for _, count in kinds[8:])} others")
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    return (f"skipped {len(others)} file{'s' if len(others) > 1 else ''} that"
            f" {'are' if len(others) > 1 else 'is'} no {formats}: {', '.join(shown)}"
            f" ({', '.join(map(str, others[:3]))}{more})")


def _kind(path: Path) -> str:
    """A file's suffix, with the one before where the last says how it is packed (.nii.gz)."""
    found = re.search(r"(\.[a-z]\w{0,7})?\.(gz|bz2|xz|zst)$|\.\d*[a-z]\w{0,7}$", path.name.lower())
    return found[0] if found else "without suffix"  # digits alone end a DICOM file's name
