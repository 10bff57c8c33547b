"""RSNA Pneumonia Detection Challenge, stage 2: chest X-rays in DICOM."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from scrd_fast.data.decode.dicom_kind import is_dicom
from scrd_fast.data.prepare.download import (
    Download,
    Entry,
    Sizes,
    check_named,
    find,
    find_version,
    list_files,
    read_rows,
)
from scrd_fast.errors import DataError

_IMAGES = "stage_2_train_images"
_CLASSES = "stage_2_detailed_class_info.csv"
_BOXES = "stage_2_train_labels.csv"
_ORIGIN = "pneumonia-challenge-dataset-mappings_2018.json"
_NORMAL, _ANOMALOUS, _OTHER = "Normal", "Lung Opacity", "No Lung Opacity / Not Normal"


@dataclass(frozen=True)
class Rsna:
    """counts: images per class, of the 26 684 of the official training part. sizes: those of
    Cai et al., DDAD (2022), which MedIAnomaly and SCRD4AD (2025) use."""

    title: ClassVar[str] = "RSNA Pneumonia Detection Challenge (stage 2)"
    kind: ClassVar[str] = "DICOM"
    official_split: ClassVar[str] = ""
    counts: Mapping[str, int] = field(
        default_factory=lambda: {_NORMAL: 8851, _ANOMALOUS: 6012, _OTHER: 11821})
    sizes: Sizes = field(default_factory=lambda: Sizes(3851, 1000, 1000))

    recognises = staticmethod(is_dicom)

    def read(self, source: Path, partial: bool) -> Download:
        """Read labels and patients; anomalous is Lung Opacity, and the third class is left out."""
        table = find(source, _CLASSES)
        classes = self._classes(table)
        folder = find(source, _IMAGES)
        files = list_files(folder, ".dcm")
        check_named(folder, files, classes, table)
        tables = [table]
        if (source / _BOXES).exists():
            _check_boxes(source / _BOXES, classes)
            tables.append(source / _BOXES)
        found = Counter(classes[stem] for stem in files)
        counts = {name: found[name] for name in self.counts}
        version = find_version(source, {"stage 2": self.counts}, counts, partial)
        patients = {stem: stem for stem in files}
        remark = (f"patients are the patientId of {_CLASSES}, of which each image has its own; the"
                  " images come from NIH ChestX-ray14, where patients have several: put"
                  f" {_ORIGIN} of rsna.org beside it to know them")
        if (source / _ORIGIN).exists():
            patients = _read_origin(source / _ORIGIN, files)
            remark = f"patients are those of NIH ChestX-ray14, by {_ORIGIN}"
            tables.append(source / _ORIGIN)
        entries = tuple(
            Entry(path.relative_to(source), int(classes[stem] == _ANOMALOUS), classes[stem],
                  patients[stem])
            for stem, path in files.items() if classes[stem] != _OTHER)
        whole = {0: self.counts[_NORMAL], 1: self.counts[_ANOMALOUS]}
        return Download(version, counts, self.counts, whole, tuple(tables), entries, (remark,))

    def _classes(self, table: Path) -> dict[str, str]:
        classes: dict[str, str] = {}
        for number, row in enumerate(read_rows(table, ("patientId", "class")), start=2):
            name = row["class"]
            if name not in self.counts:
                raise DataError(f"{table}: row {number}: expected one of the classes"
                                f" {', '.join(self.counts)}, got {name!r}")
            if classes.setdefault(row["patientId"], name) != name:
                raise DataError(f"{table}: row {number}: expected one class per patientId, got"
                                f" {name} and {classes[row['patientId']]}")
        return classes


def _check_boxes(table: Path, classes: Mapping[str, str]) -> None:
    """Raise DataError where Target is not 1 for Lung Opacity and 0 for the others."""
    for number, row in enumerate(read_rows(table, ("patientId", "Target")), start=2):
        name = classes.get(row["patientId"])
        if name is None:
            raise DataError(f"{table}: row {number}: expected a patientId of {_CLASSES}, got"
                            " another")
        expected = str(int(name == _ANOMALOUS))
        if row["Target"] != expected:
            raise DataError(f"{table}: row {number}: expected Target {expected} for {name}, got"
                            f" {row['Target']!r}")


def _read_origin(path: Path, files: Mapping[str, Path]) -> dict[str, str]:
    """Map each image to its patient: NIH names its files <patient>_<number>.png."""
    try:
        rows = json.loads(path.read_bytes())
        origin = {row["subset_img_id"]: str(row["img_id"]).partition("_")[0] for row in rows}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON list with subset_img_id and img_id, got"
                        f" {type(error).__name__} in reading it as such") from None
    missing = sum(stem not in origin for stem in files)
    if missing:
        raise DataError(f"{path}: expected every image of {_IMAGES}, got none of {missing}")
    return {stem: origin[stem] for stem in files}
