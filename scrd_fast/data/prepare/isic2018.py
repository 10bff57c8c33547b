"""ISIC 2018 challenge, task 3 (HAM10000): dermatoscopic pictures as JPEG."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from scrd_fast.data.layouts.isic2018 import CLASSES, NORMAL, read_classes
from scrd_fast.data.prepare.download import (
    Download,
    Entry,
    check_named,
    find,
    find_version,
    is_picture,
    list_files,
    read_rows,
)
from scrd_fast.errors import DataError

_LESIONS = "ISIC2018_Task3_Training_LesionGroupings.csv"


def _by_class(*counts: int) -> dict[str, int]:
    return dict(zip(CLASSES, counts, strict=True))


@dataclass(frozen=True)
class Isic2018:
    """counts: images per official part and class. test: the official part to test on: "Test" as
    MedIAnomaly and SCRD4AD (2025) do, or "Validation" as others do."""

    title: ClassVar[str] = "ISIC 2018 challenge, task 3"
    kind: ClassVar[str] = "picture"
    sizes: ClassVar[None] = None
    test: str = "Test"
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: {
        "Training": _by_class(1113, 6705, 514, 327, 1099, 115, 142),
        "Validation": _by_class(21, 123, 15, 8, 22, 1, 3),
        "Test": _by_class(171, 909, 93, 43, 217, 44, 35)})

    recognises = staticmethod(is_picture)

    @property
    def official_split(self) -> str:
        return (f"the official parts: train: {NORMAL} of the part Training, test: all of the part"
                f" {self.test}")

    def read(self, source: Path, partial: bool) -> Download:
        """Read the official parts; normal is NV (nevus), and all other classes are anomalous."""
        splits = {"Training": "train", self.test: "test"}
        if (source / _images("Validation")).exists():
            splits.setdefault("Validation", "validation")
        found, expected = dict[str, int](), dict[str, int]()
        tables, entries = [], list[Entry]()
        for part, split in splits.items():
            table = find(source, f"ISIC2018_Task3_{part}_GroundTruth/{_truth(part)}", _truth(part))
            classes = read_classes(table)
            folder = find(source, _images(part))
            files = list_files(folder, ".jpg")
            check_named(folder, files, classes, table)
            tables.append(table)
            numbers = Counter(classes[stem] for stem in files)
            found |= {f"{part} {name}": numbers[name] for name in CLASSES}
            expected |= {f"{part} {name}": n for name, n in self.counts[part].items()}
            entries += [Entry(path.relative_to(source), int(classes[stem] != NORMAL),
                              classes[stem], split=split)
                        for stem, path in files.items()
                        if split != "train" or classes[stem] == NORMAL]
        version = find_version(source, {"as of 2018": expected}, found, partial)
        remark = (f"no {_LESIONS} in the download: pictures of one lesion may be in both train and"
                  " a validation share held out of it")
        if (source / _LESIONS).exists():
            entries = _name_lesions(source / _LESIONS, entries)
            tables.append(source / _LESIONS)
            remark = ("patients are the lesions of the training part; the challenge tells no"
                      " patients, and no lesions of the other parts")
        whole = {0: 0, 1: 0}
        for name, count in expected.items():
            normal = name.endswith(f" {NORMAL}")
            if normal or not name.startswith("Training "):
                whole[int(not normal)] += count
        return Download(version, found, expected, whole, tuple(tables), tuple(entries), (remark,))


def _images(part: str) -> str:
    return f"ISIC2018_Task3_{part}_Input"


def _truth(part: str) -> str:
    return f"ISIC2018_Task3_{part}_GroundTruth.csv"


def _name_lesions(table: Path, entries: list[Entry]) -> list[Entry]:
    """The entries with the lesions of the training images as patients."""
    lesions = {row["image"]: row["lesion_id"]
               for row in read_rows(table, ("image", "lesion_id"))}
    missing = sum(each.split == "train" and not lesions.get(each.path.stem) for each in entries)
    if missing:
        raise DataError(f"{table}: expected a lesion_id of every training image, got none of"
                        f" {missing}")
    return [Entry(each.path, each.label, each.group,
                  lesions[each.path.stem] if each.split == "train" else None, each.split)
            for each in entries]
