"""The images that results refer to: what their files say of them, and where they lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.ahead import decode_ahead
from scrd_fast.data.decode.dicom_pixels import read_numbers, read_texts
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError
from scrd_fast.outputs.by_series import check_shared
from scrd_fast.spec import DecodingRule

if TYPE_CHECKING:
    from pydicom import Dataset

_SHARED = ("StudyInstanceUID", "SeriesInstanceUID", "PatientID")
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_PLACED = ("CT", "MR", "PT")  # modalities whose images lie in a frame of reference, or are faulty
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_TURNED = 1e-4  # of a direction's components: 0.05 voxels at the end of 512
_APART = 1e-3  # mm between slices that are two


@dataclass(frozen=True, eq=False)
class Plane:
    """Where an image lies in a frame of reference, in mm, in DICOM's coordinates (LPS+).

    position: of the first pixel's centre, (3,); directions: of increasing column, then of
    increasing row, (2, 3), unit vectors; spacing: of rows, of columns; thickness: None where the
    file does not tell.
    """

    frame_of_reference: str
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing: tuple[float, float]
    thickness: float | None

    @cached_property
    def height(self) -> float:
        """Along the plane's normal."""
        return float(np.cross(*self.directions) @ self.position)

    def is_parallel(self, other: "Plane") -> bool:
        """Whether both have one orientation, spacing and frame of reference."""
        return (self.frame_of_reference == other.frame_of_reference
                and np.allclose(self.directions, other.directions, rtol=0, atol=_TURNED)
                and np.allclose(self.spacing, other.spacing, rtol=1e-4, atol=0))


@dataclass(frozen=True, eq=False)
class SourceImage:
    """An image that was scored. header: of its file, without pixels; plane: None where the file
    does not tell it whole."""

    scored: Scored
    header: "Dataset"
    plane: Plane | None

    @property
    def path(self) -> Path:
        assert self.scored.source is not None
        return self.scored.source.path

    @property
    def frame(self) -> int | None:
        """DICOM's number of a frame, from 1; None of a file of one picture."""
        assert self.scored.source is not None
        return None if self.scored.source.frame is None else self.scored.source.frame + 1

    @property
    def name(self) -> tuple[str, int | None]:
        """What no other image of the series is called."""
        return str(self.header.SOPInstanceUID), self.frame

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.scored.image.shape[:2]
        return int(rows), int(columns)

    def is_projection(self) -> bool:
        """Whether it lies in no frame of reference, as X-rays do, and is whole without."""
        return not read_texts(self.header, "FrameOfReferenceUID") and not any(
            modality in _PLACED for modality in read_texts(self.header, "Modality"))


def refer(images: Sequence[SourceImage], *, whole: bool = False) -> "Dataset":
    """What names images of one file among others: their class, their instance, and unless it is
    meant as a `whole` their frames in that."""
    from pydicom import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = images[0].header.SOPClassUID
    item.ReferencedSOPInstanceUID = images[0].header.SOPInstanceUID
    if not whole and images[0].frame is not None:
        item.ReferencedFrameNumber = [image.frame for image in images]
    return item


def read_sources(series: Sequence[Scored]) -> list[SourceImage]:
    """The images of one series that were scored, with the headers of their files.

    Raises DataError, which names the file, for what is no DICOM object that can be referred to, and
    for objects of more than one patient, study or series, and for one that is there twice.
    """
    headers: dict[Path, Dataset] = {}
    images = []
    for item in series:
        path = item.path
        assert path is not None
        if path not in headers:
            headers[path] = _read_header(path)
        try:
            plane = _read_plane(item, headers[path])
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        images.append(SourceImage(item, headers[path], plane))
    check_shared([(path, [read_texts(header, keyword) for keyword in _SHARED])
                  for path, header in headers.items()])
    seen: dict[tuple[str, int | None], Path] = {}
    for image in images:
        if image.name in seen:
            raise DataError(f"{image.path}: expected another image than in {seen[image.name]}, got"
                            " the same by its SOP instance UID")
        seen[image.name] = image.path
    return images


def check_unchanged(series: Sequence[Scored], rule: DecodingRule) -> None:
    """Raise DataError for a file whose images, decoded anew, are not those that were scored, bit by
    bit: their pixels, their place in the patient, and what they are called.

    series: all images of a series, those too that could not be scored, as percentiles are taken of
    all. rule: by which they were decoded.
    """
    scored: dict[Path, list[Scored]] = {}
    for item in series:
        assert item.path is not None
        scored.setdefault(item.path, []).append(item)
    for decoded in decode_ahead(scored, rule):
        found = {image.source: image for image in decoded.images}
        for item in scored[decoded.path]:
            if item.error is not None:
                continue
            if decoded.error is not None:
                raise DataError(decoded.error)
            assert item.source is not None
            image = found.get(item.source)
            if image is None or not (np.array_equal(image.pixels, item.image)
                                     and _are_equal(image.geometry, item.geometry)):
                raise DataError(f"{decoded.path}: expected the pixels that were scored, got others;"
                                " it has changed since, or its series has")


def _are_equal(one: NDArray[np.float64] | None, other: NDArray[np.float64] | None) -> bool:
    return one is other if one is None or other is None else np.array_equal(one, other)


def _read_header(path: Path) -> "Dataset":
    import pydicom

    try:
        header = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        missing = [keyword for keyword in _UIDS if not read_texts(header, keyword)]
    except Exception as error:
        # What a library says may quote what the file says of a patient.
        raise DataError(f"{path}: expected a DICOM file, got {type(error).__name__} while reading"
                        " it") from error
    if missing:
        raise DataError(f"{path}: expected a DICOM object that others can refer to, got one without"
                        f" {', '.join(missing)}")
    return header


def _read_plane(item: Scored, header: "Dataset") -> Plane | None:
    """Where an image lies, from the geometry that decoding gave."""
    frame_of_reference = read_texts(header, "FrameOfReferenceUID")
    if not frame_of_reference or item.geometry is None:
        return None
    down, right, _, position = (_RAS_TO_LPS @ item.geometry)[:3].T
    spacing = np.linalg.norm([down, right], axis=1)
    return Plane(frame_of_reference[0], position, np.stack([right / spacing[1], down / spacing[0]]),
                 (float(spacing[0]), float(spacing[1])),
                 _read_thickness(header, (item.source and item.source.frame) or 0))


def _read_thickness(header: "Dataset", frame: int) -> float | None:
    """In mm; of a frame what its own functional groups say, else those of all (C.7.6.16)."""
    each = header.get("PerFrameFunctionalGroupsSequence")
    groups: list[Any] = [each[frame]] if each else []
    groups += header.get("SharedFunctionalGroupsSequence") or ()
    measures = [items[0] for group in groups if (items := group.get("PixelMeasuresSequence"))]
    for item in (*measures, header):
        found = read_numbers(item, "SliceThickness")
        if found and found[0] > 0:
            return found[0]
    return None


def stack(images: Sequence[SourceImage]) -> list[list[SourceImage]]:
    """Images that have a plane, as few stacks as may be, each from its lowest to its highest.

    The slices of a stack are parallel, of one size, and no two lie at one height: the echoes of one
    place, or a series of several planes, make several stacks.
    """
    stacks: list[list[SourceImage]] = []
    for image in images:
        for each in stacks:
            if _fits(image, each):
                each.append(image)
                break
        else:
            stacks.append([image])
    return [sorted(each, key=_height) for each in stacks]


def _height(image: SourceImage) -> float:
    assert image.plane is not None
    return image.plane.height


def _fits(image: SourceImage, others: Sequence[SourceImage]) -> bool:
    first = others[0]
    assert image.plane is not None
    assert first.plane is not None
    return (image.shape == first.shape and image.plane.is_parallel(first.plane)
            and all(abs(_height(image) - _height(other)) > _APART for other in others))
