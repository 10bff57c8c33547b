"""Preparing a published data set: read the download, check it, split it, write the folder."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scrd_fast.data.prepare.brain_tumor import BrainTumor
from scrd_fast.data.prepare.download import Download, Entry, Sizes
from scrd_fast.data.prepare.isic2018 import Isic2018
from scrd_fast.data.prepare.rsna import Rsna
from scrd_fast.data.prepare.split import Lists, assign, draw, read_lists, scale_sizes
from scrd_fast.data.prepare.write import RECORD, TABLE, check_free, write_folder
from scrd_fast.errors import DataError, expect
from scrd_fast.files import as_path
from scrd_fast.progress import Progress, silent

_HEAD = 4096  # bytes; enough to recognise every format

# By the name of the command line. Each can be made with other counts, for other downloads.
DataSetKind = Rsna | BrainTumor | Isic2018
DATA_SETS: Mapping[str, DataSetKind] = {
    "rsna": Rsna(), "brain-tumor": BrainTumor(), "isic2018": Isic2018(),
    "isic2018-validation": Isic2018(test="Validation")}


@dataclass(frozen=True)
class Prepared:
    """table: the file to give as data. title: which data set, and which version of it. counts:
    images by split, and in it by label. split: how the images were divided, in words. remarks:
    what a user should know, one line each."""

    table: Path
    title: str
    counts: Mapping[str, Mapping[int, int]]
    split: str
    remarks: tuple[str, ...]


def prepare(
    name: str, source: str | os.PathLike[str], out: str | os.PathLike[str], *,
    split: str | os.PathLike[str] | None = None, seed: int = 0, partial: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """Make of an official download a folder with a table, the images it names, and a record.

    name: one of DATA_SETS. source: the folder of the unpacked download, which stays as it is. out:
    a folder that is not there yet, or empty. In it come data.csv (columns path, label, mask,
    patient, split, group; label 0 normal, 1 anomalous; group is the class of an anomalous image),
    images/ with hard links to the download's images, or copies where the file system has no such
    links, and prepared.json: what was found, how it was divided, and all remarks.

    split: a JSON file with lists of file names, as MedIAnomaly's data.json. Without one, "rsna"
    and "brain-tumor" are divided by `seed` into as many images as the published split has, which
    are other images than that one's; the ISIC sets are divided by the challenge. partial: take a
    download of which images are missing, and as large a share of the sizes.

    Raises InputError for another name or a split file where the parts are official, DataError for
    a download or split file that is not as expected, and OutputError where `out` is in use.
    """
    expect(name in DATA_SETS, "name", f"one of {', '.join(DATA_SETS)}", repr(name))
    return prepare_as(DATA_SETS[name], name, source, out, split=split, seed=seed, partial=partial,
                      progress=progress)


def prepare_as(
    kind: DataSetKind, name: str, source: str | os.PathLike[str], out: str | os.PathLike[str], *,
    split: str | os.PathLike[str] | None = None, seed: int = 0, partial: bool = False,
    progress: Progress = silent,
) -> Prepared:
    """As `prepare`, of a download whose counts and sizes `kind` has."""
    source, out = as_path(source, "source"), as_path(out, "out")
    expect(type(seed) is int and seed >= 0, "seed", "an integer from 0 on", repr(seed))
    expect(split is None or not kind.official_split, "split",
           f"none for {name}, which the challenge divides itself", repr(split))
    lists = None if split is None else read_lists(as_path(split, "split"))
    check_free(out)
    progress(0, 0, "looking at the download")
    download = kind.read(source, partial)
    entries, digests, remarks = _divide(kind, source, download, lists, seed, partial, progress)
    counts = _count(entries)
    for part, label in (("train", 0), ("test", 0), ("test", 1)):
        if not counts.get(part, {}).get(label):
            raise DataError(f"{source}: expected images of label {label} to {part}, got none")
    told = _tell_split(kind, lists, seed, counts, download)
    duplicates = _find_duplicates(entries, digests)
    remarks = [*download.remarks, *remarks, *_describe(duplicates)]
    if download.found != download.expected:
        remarks.append(f"partial download: {sum(download.found.values())} of"
                       f" {sum(download.expected.values())} images")
    record = {
        "data_set": name, "title": kind.title, "download": _tell_download(source, download),
        "split": {"text": told, "seed": None if lists or kind.official_split else seed,
                  "file": lists and lists.path.name, "sha256": lists and lists.sha256},
        "counts": {part: {str(label): number for label, number in each.items()}
                   for part, each in counts.items()},
        "images_sha256": _digest_all(entries, digests), "duplicates": duplicates,
        "remarks": remarks}
    written = write_folder(source, out, entries, record, progress)
    return Prepared(out / TABLE, f"{kind.title}, {download.version}", counts, told,
                    (*remarks, written))


def _divide(
    kind: DataSetKind, source: Path, download: Download, lists: Lists | None, seed: int,
    partial: bool, progress: Progress,
) -> tuple[list[Entry], dict[Path, str], list[str]]:
    """The entries that get a split, in the table's order; digests by path; and remarks."""
    entries: Sequence[Entry] = download.entries
    remarks = []
    if lists is not None:
        entries, missing = assign(entries, lists, f"{source} ({download.version})", partial)
        if missing:
            remarks.append(f"{missing} names of the lists have no image in the download")
    digests = _hash(source, entries, kind, progress)
    if lists is None and kind.sizes is not None:
        sizes = kind.sizes
        if partial:
            found = Counter(each.label for each in entries)
            sizes = scale_sizes(sizes, found, download.whole)
        entries = draw(entries, digests, sizes, seed)
    entries, crossing = _forget_crossing(entries)
    if crossing:
        remarks.append(f"{crossing} patients have images in both train and test of the lists; the"
                       " table does not name these patients")
    return sorted(entries, key=lambda each: (each.split, each.label, each.path.as_posix())), \
        digests, remarks


def _hash(
    source: Path, entries: Sequence[Entry], kind: DataSetKind, progress: Progress,
) -> dict[Path, str]:
    """The SHA-256 of each image, by its path; raises DataError for one of another format."""
    def look(entry: Entry) -> str:
        path = source / entry.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
        if not kind.recognises(data[:_HEAD]):
            raise DataError(f"{path}: expected a {kind.kind} file, got"
                            f" {'other content' if data else 'no byte'}")
        return hashlib.sha256(data).hexdigest()

    digests = {}
    pool = ThreadPoolExecutor()
    try:
        for entry, digest in zip(entries, pool.map(look, entries), strict=True):
            digests[entry.path] = digest
            progress(len(digests), len(entries), "reading images")
    finally:
        pool.shutdown(cancel_futures=True)
    return digests


def _tell_download(source: Path, download: Download) -> dict[str, Any]:
    return {"version": download.version, "found": dict(download.found),
            "expected": dict(download.expected),
            "tables": {each.relative_to(source).as_posix(): _digest(each)
                       for each in download.tables}}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_all(entries: Sequence[Entry], digests: Mapping[Path, str]) -> str:
    """One SHA-256 of all images with their names, splits and labels, to compare two folders by."""
    lines = sorted(f"{each.path.as_posix()} {each.split} {each.label} {digests[each.path]}\n"
                   for each in entries)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def _forget_crossing(entries: Sequence[Entry]) -> tuple[list[Entry], int]:
    """The entries without the patients that lists put into more than one part, and their number:
    who reads the table refuses a patient that is in two."""
    parts = defaultdict[str, set[str]](set)
    for each in entries:
        if each.patient is not None:
            parts[each.patient].add(each.split)
    crossing = {patient for patient, splits in parts.items() if len(splits) > 1}
    return [replace(each, patient=None) if each.patient in crossing else each
            for each in entries], len(crossing)


def _count(entries: Sequence[Entry]) -> dict[str, dict[int, int]]:
    counts: dict[str, dict[int, int]] = {}
    for (part, label), number in sorted(Counter((e.split, e.label) for e in entries).items()):
        counts.setdefault(part, {})[label] = number
    return counts


def _find_duplicates(entries: Sequence[Entry], digests: Mapping[Path, str]) -> dict[str, Any]:
    """Images with the same bytes: how many, and which are in two parts or have two labels."""
    groups = defaultdict[str, list[Entry]](list)
    for each in entries:
        groups[digests[each.path]].append(each)
    same = [group for group in groups.values() if len(group) > 1]

    def listed(chosen: Sequence[Sequence[Entry]]) -> list[list[str]]:
        return [[each.path.as_posix() for each in group] for group in chosen]

    return {"images": sum(map(len, same)),
            "in_two_parts": listed([g for g in same if len({each.split for each in g}) > 1]),
            "with_two_labels": listed([g for g in same if len({each.label for each in g}) > 1])}


def _describe(duplicates: Mapping[str, Any]) -> list[str]:
    remarks = []
    if duplicates["images"]:
        remarks.append(f"{duplicates['images']} images have the same bytes as another")
    for name, text in (("in_two_parts", "are in more than one part"),
                       ("with_two_labels", "have two labels")):
        if duplicates[name]:
            remarks.append(f"{len(duplicates[name])} of the pictures that are there more than once"
                           f" {text}; {RECORD} lists them")
    return remarks


def _tell_split(
    kind: DataSetKind, lists: Lists | None, seed: int,
    counts: Mapping[str, Mapping[int, int]], download: Download,
) -> str:
    if kind.sizes is None:
        whole = download.found == download.expected
        others = ", validation: all of the part Validation" if "validation" in counts else ""
        return kind.official_split + others + ("" if whole else ", as far as they are there")
    as_many = _is_as_large(kind.sizes, counts)
    if lists is not None:
        return (f"the lists of {lists.path.name} (SHA-256 {lists.sha256[:12]}...), which have"
                f" {'as' if as_many else 'not as'} many images as the published split")
    return (f"drawn here by seed {seed}, not the published split:"
            + (" as many images, but others" if as_many else " fewer images, and others"))


def _is_as_large(sizes: Sizes, counts: Mapping[str, Mapping[int, int]]) -> bool:
    return all(counts[part].get(label) == size for (part, label), size in sizes.per_part().items())
