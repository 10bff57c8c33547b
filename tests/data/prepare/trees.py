"""Miniature downloads of exactly the official shape, and the counts that go with them."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from scrd_fast.data.prepare.brain_tumor import BrainTumor
from scrd_fast.data.prepare.download import Sizes
from scrd_fast.data.prepare.isic2018 import Isic2018
from scrd_fast.data.prepare.rsna import Rsna

NORMAL, ANOMALOUS, OTHER = "Normal", "Lung Opacity", "No Lung Opacity / Not Normal"
RSNA = Rsna({NORMAL: 20, ANOMALOUS: 12, OTHER: 3}, Sizes(8, 4, 4))
ORIGIN = "pneumonia-challenge-dataset-mappings_2018.json"

_FOLDERS = {"notumor": (14, 6), "glioma": (4, 2), "meningioma": (5, 2), "pituitary": (2, 1)}
BRAIN = BrainTumor({
    "version 1": {f"{part}/{name}": counts[i] for name, counts in _FOLDERS.items()
                  for i, part in enumerate(("Training", "Testing"))},
    "version 2": {f"{part}/{name}": 5 for name in _FOLDERS for part in ("Training", "Testing")}},
    Sizes(8, 5, 6))
_SHORT = {"notumor": "no", "glioma": "gl", "meningioma": "me", "pituitary": "pi"}

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
ISIC_COUNTS = {part: dict(zip(CLASSES, numbers, strict=True)) for part, numbers in {
    "Training": (2, 9, 1, 1, 1, 1, 1), "Validation": (1, 3, 1, 1, 1, 0, 1),
    "Test": (1, 5, 1, 0, 2, 1, 1)}.items()}
ISIC, ISIC_ON_VALIDATION = Isic2018("Test", ISIC_COUNTS), Isic2018("Validation", ISIC_COUNTS)


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(header), *map(list, rows)])


def write_picture(path: Path, number: int) -> None:
    """A JPEG whose bytes are its number's alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def write_dicom(path: Path, patient: str, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, f"1.2.3.{number + 1}"
    data.PatientID, data.Modality, data.PhotometricInterpretation = patient, "CR", "MONOCHROME2"
    data.Rows = data.Columns = 8
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 7, 0, 1
    data.PixelData = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8).tobytes()
    data.save_as(path, enforce_file_format=True)


def rsna_classes() -> dict[str, str]:
    """Map each patientId to its class."""
    names = [name for name, count in RSNA.counts.items() for _ in range(count)]
    return {f"{i:08x}-aaaa-4bbb-8ccc-{i:012x}": name for i, name in enumerate(names)}


def make_rsna(root: Path) -> Path:
    classes = rsna_classes()
    # As officially: one row per box, so patients with several boxes have several rows.
    rows = [(each, name) for each, name in classes.items()
            for _ in range(1 + (name == ANOMALOUS and each.endswith(("1", "5"))))]
    write_table(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), rows)
    boxes = [(each, *([1.0, 2.0, 3.0, 4.0, 1] if name == ANOMALOUS else ["", "", "", "", 0]))
             for each, name in rows]
    write_table(root / "stage_2_train_labels.csv",
                ("patientId", "x", "y", "width", "height", "Target"), boxes)
    for number, each in enumerate(classes):
        write_dicom(root / "stage_2_train_images" / f"{each}.dcm", each, number)
    return root


def write_origin(root: Path) -> dict[str, str]:
    """Add the file that tells the patients of NIH ChestX-ray14: three images each, of which some
    have both labels. Returns patients by patientId."""
    patients = {each: f"{i % 12:08}" for i, each in enumerate(rsna_classes())}
    (root / ORIGIN).write_text(json.dumps([
        {"subset_img_id": each, "img_id": f"{patient}_{i:03}.png", "orig_labels": ["No Finding"]}
        for i, (each, patient) in enumerate(patients.items())]))
    return patients


def make_brain(root: Path, version: str = "version 1") -> Path:
    number = 0
    for folder, count in BRAIN.versions[version].items():
        part, name = folder.split("/")
        for i in range(count):
            number += 1
            write_picture(root / folder / f"{part[:2]}-{_SHORT[name]}_{i:04}.jpg", number)
    return root


def isic_classes(part: str) -> dict[str, str]:
    first = {"Training": 24306, "Validation": 34321, "Test": 34524}[part]
    names = [name for name, count in ISIC_COUNTS[part].items() for _ in range(count)]
    return {f"ISIC_{first + i:07}": name for i, name in enumerate(names)}


def make_isic(root: Path, parts: Iterable[str] = ISIC_COUNTS, *, lesions: bool = True) -> Path:
    for part in parts:
        classes = isic_classes(part)
        name = f"ISIC2018_Task3_{part}_GroundTruth"
        write_table(root / name / f"{name}.csv", ("image", *CLASSES), [
            (image, *(float(each == kind) for each in CLASSES))
            for image, kind in classes.items()])
        for image in classes:
            write_picture(root / f"ISIC2018_Task3_{part}_Input" / f"{image}.jpg", int(image[5:]))
    if lesions:
        write_table(root / "ISIC2018_Task3_Training_LesionGroupings.csv",
                    ("image", "lesion_id", "diagnosis_confirm_type"),
                    [(image, f"HAM_{i // 2:07}", "histopathology")
                     for i, image in enumerate(isic_classes("Training"))])
    return root


def write_lists(path: Path, train: Iterable[str], normal: Iterable[str],
                anomalous: Iterable[str], **more: Mapping[str, object]) -> Path:
    path.write_text(json.dumps({
        "train": {"0": list(train), "unlabeled": {"0": [], "1": []}},
        "test": {"0": list(normal), "1": list(anomalous)}, **more}))
    return path
