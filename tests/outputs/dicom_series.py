"""DICOM series on disk, and results of scoring them whose maps are known."""

import shutil
import subprocess
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import UID

import scrd_fast
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.stream import Scored
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.metrics.map_scale import MapScale
from scrd_fast.outputs.dicom.write import OBJECTS, write_dicom
from tests.data.decode.dicom_by_hand import OWN

CR = OWN / "dicomdirtests/77654033/CR1/6154"
SCALE, THRESHOLD = (0.25, 1.75), 1.0  # of maps, in the engine
SIDE = 128  # of maps
ROWS, COLUMNS = 80, 96
SPACING, STEP = (0.9, 1.2), 3.0  # mm
ORIGIN = np.array([-40.0, 25.0, -110.0])  # LPS
PLANES = {
    "axial": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1],
    "oblique": [0.8, 0.6, 0, 0, 0, -1], "columns flipped": [-1, 0, 0, 0, 1, 0],
    "rows flipped": [1, 0, 0, 0, -1, 0], "both flipped": [-1, 0, 0, 0, -1, 0],
    "double oblique": [*np.round(np.array([2, -1, 2]) / 3, 6), *np.round(np.array([2, 2, -1]) / 3,
                                                                       6)]}


def normal(plane: str) -> np.ndarray:
    return np.cross(PLANES[plane][:3], PLANES[plane][3:])


def write_series(folder: Path, plane: str = "axial", count: int = 5, *, like: str = "CT_small.dcm",
                 **elements: object) -> list[Path]:
    """Slices with the header of one of pydicom's files, STEP mm apart, the lowest first."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    paths = []
    for i in range(count):
        data = pydicom.dcmread(OWN / like)
        data.pop("DataSetTrailingPadding", None)  # means nothing, and dcmtk leaves it out
        data.Rows, data.Columns = ROWS, COLUMNS
        data.PixelData = rng.integers(0, 2000, (ROWS, COLUMNS), np.int16).tobytes()
        data.PixelSpacing, data.SliceThickness = list(SPACING), STEP
        data.ImageOrientationPatient = list(PLANES[plane])
        data.ImagePositionPatient = [
            round(each, 6) for each in ORIGIN + i * STEP * normal(plane)]
        data.InstanceNumber = i + 1
        data.WindowCenter, data.WindowWidth = 1000, 2000
        for keyword, value in elements.items():
            if value is None:
                del data[keyword]
            else:
                setattr(data, keyword, value)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(
            f"{data.SeriesInstanceUID}.{i + 1}")
        paths.append(folder / f"{i}.dcm")
        data.save_as(paths[-1])
    return paths


def write_enhanced(folder: Path) -> Path:
    """An enhanced MR object that highdicom made of a series."""
    import highdicom

    slices = [pydicom.dcmread(path) for path in write_series(
        folder / "in", "oblique", like="MR_small.dcm", ContentDate="20040826",
        ContentTime="185059")]
    made = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        slices, slices[0].SeriesInstanceUID, 7, "1.2.3.4", 1)
    made.save_as(folder / "enhanced.dcm")
    return folder / "enhanced.dcm"


def calibrate(engine: Path, folder: Path) -> Path:
    """The engine file with decisions that tell its scores apart, and SCALE and THRESHOLD."""
    manifest, members = read_engine_file(engine)
    decisions = Decisions((0.1, 0.2, 0.3), ((0.3, 0.3, 0.4),) * 3, "conformal", 0.3, 0.25,
                          maps=MapScale(SCALE, THRESHOLD))
    return write_engine_file(folder / "m.scrd", replace(manifest, calibration=decisions), members)


def read_scored(paths: Sequence[Path], lesion: np.ndarray | None = None) -> list[Scored]:
    """The images of files as if they had been scored: their maps have one peak, where the lesion
    (mm, LPS) is nearest, or else some noise."""
    rng = np.random.default_rng(7)
    with warnings.catch_warnings(action="ignore"):  # of files that name no window
        images = scrd_fast.read_images(list(paths))
    scored = []
    for i, image in enumerate(images):
        found = rng.uniform(0, 2, (SIDE, SIDE)).astype(np.float32)
        if lesion is not None:
            found = np.float32(1.9) * bump(image.geometry, image.pixels.shape, lesion)
        scored.append(Scored(i, image.source, image.pixels, np.float32(0.25 + i), found,
                             np.full(3, 1 / 3, np.float32), np.float32(0.5 / (i + 1)), i % 2 == 1,
                             geometry=image.geometry))
    return scored


def bump(geometry: np.ndarray, shape: tuple[int, ...], lesion: np.ndarray) -> np.ndarray:
    """A map (SIDE, SIDE) that falls off with the distance in mm from the lesion."""
    places = [(np.arange(SIDE) + 0.5) * side / SIDE - 0.5 for side in shape[:2]]
    rows, columns = np.meshgrid(*places, indexing="ij")
    pixels = np.stack([rows, columns, np.zeros_like(rows), np.ones_like(rows)], -1)
    lps = (pixels @ geometry.T)[..., :3] * [-1, -1, 1]
    return np.exp(-((lps - lesion) ** 2).sum(-1) / (2 * 4.0**2)).astype(np.float32)


def write(engine: Engine, scored: Sequence[Scored], folder: Path,
          **options: object) -> tuple[dict[str, list[pydicom.Dataset]], dict[str, list[Path]]]:
    """All objects by their kinds, as pydicom reads them, and the notes."""
    written = write_dicom(scored, engine, folder, **options)
    assert sorted(written.files) == sorted(folder.iterdir())
    found = {kind: list[pydicom.Dataset]() for kind in OBJECTS}
    for path in written.files:
        kind, _, uid = path.stem.partition("-")
        found[kind].append(pydicom.dcmread(path))
        assert found[kind][-1].SOPInstanceUID == uid
        assert len(uid) <= 64
        assert UID(uid).is_valid
    return found, written.notes


def every(found: dict[str, list[pydicom.Dataset]]) -> list[pydicom.Dataset]:
    return [each for datasets in found.values() for each in datasets]


def referred(dataset: pydicom.Dataset) -> list[tuple[str, int | None]]:
    """For each frame the instance and the frame that it comes from."""
    found = []
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (item,) = group.DerivationImageSequence[0].SourceImageSequence
        found.append((item.ReferencedSOPInstanceUID, item.get("ReferencedFrameNumber")))
    return found


def find_errors(path: Path) -> set[str]:
    """What dciodvfy finds wrong in a file."""
    ran = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False,
                         errors="replace")
    return {line for line in (ran.stdout + ran.stderr).splitlines() if line.startswith("Error")}


def has_tool(name: str) -> bool:
    return shutil.which(name) is not None
