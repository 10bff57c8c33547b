"""CT series of several patients on disk, of whom one bleeds, and training that takes seconds."""

from pathlib import Path

import numpy as np

from tests.data.decode.dicom_by_hand import dicom, save

SLICES, SIDE = 12, 64
PATIENTS = {"Aldebaran": "series_1", "Betelgeuse": "series_2", "Canopus": "series_3"}
OPTIONS = ("--backbone", "resnet18", "--teacher", "random", "--input-size", SIDE, "--steps", 3,
           "--batch-size", 4, "--noise-min-side", 4, "--quiet")


def _make_slice(rng: np.random.Generator, k: int, lesion: bool) -> np.ndarray:
    """A head in Hounsfield units: air, bone, brain, and what bleeds."""
    y, x = np.indices((SIDE, SIDE)) / SIDE - 0.5
    radius = np.hypot(x / 0.9, y) + 0.004 * k
    units = np.where(radius < 0.42, np.where(radius < 0.37, 32.0, 900.0), -1000.0)
    units += rng.normal(0, 4, units.shape)
    if lesion:
        units[28:38, 30:42] = 75
    return np.rint(units + 1024).astype(np.uint16)


def has_lesion(patient: str, k: int) -> bool:
    """The third one bleeds in half of the slices."""
    return patient == "Canopus" and k >= SLICES // 2


def write_patients(root: Path) -> Path:
    """ROOT/tree: a study of each patient, of one series, in folders without their names."""
    rng = np.random.default_rng(0)
    for number, (patient, folder) in enumerate(PATIENTS.items()):
        (root / "tree" / folder).mkdir(parents=True)
        for k in range(SLICES):
            save(dicom(_make_slice(rng, k, has_lesion(patient, k)), PatientID=patient,
                       PatientName=patient, RescaleSlope=1, RescaleIntercept=-1024,
                       RescaleType="HU", BitsStored=16, WindowCenter=300, WindowWidth=2500,
                       StudyInstanceUID=f"1.2.4.{number}", SeriesInstanceUID=f"1.2.3.{number}",
                       SOPInstanceUID=f"1.2.3.{number}.{k}", Modality="CT", PixelSpacing=[4, 4],
                       SliceThickness=5, FrameOfReferenceUID=f"1.2.5.{number}",
                       ImagePositionPatient=[0, 0, 5.0 * k],
                       ImageOrientationPatient=[1, 0, 0, 0, 1, 0]),
                 root / "tree" / folder / f"IM{k:04}")
    return root


def write_table(path: Path, **moved: str) -> Path:
    """path, label and split of each file: by patient, but for the files that are moved."""
    rows = []
    for (patient, folder), split in zip(PATIENTS.items(), ("train", "validation", "test"),
                                        strict=True):
        rows += [(f"tree/{folder}/IM{k:04}", int(has_lesion(patient, k)),
                  moved.get(f"{folder}_{k}", split)) for k in range(SLICES)]
    path.write_text("path,label,split\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
    return path


def name_nobody(*said: str | bytes) -> bool:
    """Whether no patient's name stands there."""
    return not any(name.encode() in (text if isinstance(text, bytes) else text.encode())
                   for text in said for name in PATIENTS)
