"""Miniature data sets: files of a few pixels in folders of the published shapes."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from scrd_fast.data.layouts import Item
from tests.data.decode.dicom_by_hand import dicom, save


def grow(root: Path, *names: str) -> Path:
    """Files of these names below the root, by their suffix; others are DICOM, each of a patient."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".nii", ".nii.gz")):
            nifti(path)
        elif path.suffix in (".png", ".jpg", ".tif", ".bmp"):
            path.write_bytes(_picture(path.suffix))
        else:
            save_dicom(path, path.name)
    return root


@cache
def _picture(suffix: str) -> bytes:
    return cv2.imencode(suffix, np.arange(64, dtype=np.uint8).reshape(8, 8))[1].tobytes()


def nifti(path: Path) -> None:
    import nibabel

    nibabel.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)).to_filename(path)


def save_dicom(path: Path, patient: str | None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(dicom(np.zeros((4, 4), np.int16), PatientID=patient), path)


def told(root: Path, items: Iterable[Item]) -> list[tuple]:
    """(name, split, label, group, name of the mask) of each item."""
    return [(item.path.relative_to(root).as_posix(), item.split, item.label, item.group,
             item.mask and item.mask.relative_to(root).as_posix()) for item in items]
