"""Which images are to train on and which to test: by the lists of a file, or drawn by a seed."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from scrd_fast.data.layouts import medianomaly
from scrd_fast.data.prepare.download import Entry, Sizes
from scrd_fast.errors import DataError


@dataclass(frozen=True)
class Lists:
    """File names per (split, label), as MedIAnomaly's data.json has them; sha256: of that file."""

    path: Path
    sha256: str
    names: Mapping[tuple[str, int], Sequence[str]]


def read_lists(path: Path) -> Lists:
    """Read a file of the shape medianomaly.LISTS; what else it holds, such as "unlabeled", is not
    read. Raises DataError for another shape, and for a name that is there twice."""
    names, data = medianomaly.read_lists(path)
    seen = Counter(_stem(name) for each in names.values() for name in each)
    twice = sum(count > 1 for count in seen.values())
    if twice:
        raise DataError(f"{path}: expected each name once, got {twice} of them more often")
    return Lists(path, hashlib.sha256(data).hexdigest(), names)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem  # the lists name PNG files that were made of the originals


def assign(
    entries: Sequence[Entry], lists: Lists, where: str, partial: bool,
) -> tuple[list[Entry], int]:
    """The entries that the lists name, with their splits, and how many names have no image.

    where: the download, for messages. Raises DataError where a name has no image, unless partial,
    where a list is left with none, or where an image is of the other label.
    """
    by_stem: dict[str, Entry] = {}
    for each in entries:
        if by_stem.setdefault(each.path.stem, each) is not each:
            raise DataError(f"{where}: expected each file name once, got {each.path.name} in two"
                            " folders")
    chosen, missing = list[Entry](), list[str]()
    for (split, label), names in lists.names.items():
        before = len(chosen)
        for number, name in enumerate(names, start=1):
            entry, place = by_stem.get(_stem(name)), f'"{split}" / "{label}", name {number}'
            if entry is None:
                missing.append(place)
            elif entry.label != label:
                raise DataError(f"{lists.path}: {place}: expected an image of label {label}, got"
                                f" one of {entry.group}")
            else:
                chosen.append(replace(entry, split=split))
        if len(chosen) == before:
            raise DataError(f'{lists.path}: expected images of the list "{split}" / "{label}" in'
                            f" {where}, got none of {len(names)}")
    if missing and not partial:
        raise DataError(f"{lists.path}: expected an image of every name in {where}, got none of"
                        f" {len(missing)} (the first is {missing[0]})")
    return chosen, len(missing)


def draw(
    entries: Sequence[Entry], digests: Mapping[Path, str], sizes: Sizes, seed: int,
) -> list[Entry]:
    """Entries for training and for testing, `sizes` of them, drawn by a seed.

    No patient is in both, nor are the same bytes: images that share a patient or their content are
    dealt with as one. These clusters are ordered by the SHA-256 of the seed and a path, and so in
    the same way wherever a download lies. The first ones fill the test part; what is left of a
    cluster that has an image there is left out. digests: of the images' bytes, by path.

    Raises DataError where there are too few images.
    """
    clusters = [sorted(each, key=lambda entry: entry.path.as_posix())
                for each in _cluster(entries, digests)]
    clusters.sort(key=lambda each: hashlib.sha256(
        f"{seed} {each[0].path.as_posix()}".encode(errors="surrogateescape")).digest())
    left = sizes.per_part()
    chosen, rest = [], []
    for cluster in clusters:
        taken = _take(cluster, "test", left)
        chosen += taken
        if not taken:
            rest.append(cluster)
    for cluster in rest:
        chosen += _take(cluster, "train", left)
    for (split, label), short in left.items():
        if short:
            wanted = sizes.per_part()[split, label]
            raise DataError(f"{split}: expected {wanted} images of label {label} of other patients"
                            f" and other content than the other part's, got {wanted - short}")
    return chosen


def _take(cluster: Sequence[Entry], split: str, left: dict[tuple[str, int], int]) -> list[Entry]:
    taken = []
    for entry in cluster:
        if left.get((split, entry.label), 0):
            left[split, entry.label] -= 1
            taken.append(replace(entry, split=split))
    return taken


def _cluster(entries: Sequence[Entry], digests: Mapping[Path, str]) -> Iterable[list[Entry]]:
    """The entries in groups, of which no two share a patient or the same bytes."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for each in entries:
        content = f"content {digests[each.path]}"
        owner = content if each.patient is None else f"patient {each.patient}"
        parent[root(content)] = root(owner)
    clusters = defaultdict[str, list[Entry]](list)
    for each in entries:
        clusters[root(f"content {digests[each.path]}")].append(each)
    return clusters.values()


def scale_sizes(sizes: Sizes, found: Mapping[int, int], expected: Mapping[int, int]) -> Sizes:
    """`sizes` of a download of which only `found` of `expected` images, by label, are there."""
    share = {label: min(1.0, found[label] / count) for label, count in expected.items()}
    return Sizes(*(max(1, int(size * share[label]))
                   for (_, label), size in sizes.per_part().items()))
