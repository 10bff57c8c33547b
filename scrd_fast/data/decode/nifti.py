"""NIfTI-1 and NIfTI-2 in one file, also packed with gzip: slices of a volume as they are looked at.

nibabel is imported when the first such file is met. nibabel itself imports SciPy where that is
installed, and works without it.
"""

import gzip
import math
import struct
import zlib
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.data.decode.dicom_pixels import MEDICAL
from scrd_fast.data.decode.image import DecodedImage, Source, check_size
from scrd_fast.data.decode.intensity import Array, apply_limits, find_limits
from scrd_fast.data.decode.quiet import one_line, silent_libraries
from scrd_fast.errors import DataError
from scrd_fast.spec import PLANES, DecodingRule

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

_GZIP = b"\x1f\x8b"
_NIFTI1, _PAIR, _NIFTI2, _PAIR2 = b"n+1\0", b"ni1\0", b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"
_HEADER = 540  # bytes of NIfTI-2's
_MOST_PACKED = 1032  # deflate makes nothing smaller than by this
_DIFFERS = 0.1  # voxels, at a corner; float32 quaternions are right to a thousandth


def is_nifti(head: bytes) -> bool:
    """Whether a file's first bytes (4096 tell) are NIfTI's, or gzip of such."""
    return _magic(head) is not None


def _magic(head: bytes) -> bytes | None:
    if head.startswith(_GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, _HEADER)
        except zlib.error:
            return None
    for order in "<>":
        if len(head) >= 348 and struct.unpack_from(order + "i", head)[0] == 348 and (
                head[344:348] in (_NIFTI1, _PAIR)):
            return head[344:348]
        if len(head) >= 12 and struct.unpack_from(order + "i", head)[0] == 540 and (
                head[4:12] in (_NIFTI2, _PAIR2)):
            return head[4:12]
    return None


def read_nifti(path: Path, rule: DecodingRule, remarks: list[str]) -> list[DecodedImage]:
    """The slices of a volume, in the rule's plane and range; DataError gives the reason.

    Voxels are turned to the closest canonical orientation, never resampled. Axial slices have the
    patient's right on the left and the front above, coronal ones the right on the left and the
    head above, sagittal ones the front on the left and the head above. They are counted from the
    feet, the back, the left. What a user should know of a file is added to `remarks`.
    """
    try:
        import nibabel  # noqa: F401
    except ImportError as error:
        raise DataError(f"reading NIfTI needs nibabel: {MEDICAL}") from error
    with ExitStack() as stack:
        file: BufferedIOBase = stack.enter_context(path.open("rb"))
        head = file.read(4096)
        magic = _magic(head)
        if magic in (_PAIR, _PAIR2):
            raise DataError("the header of a pair of files (.hdr and .img); save as one .nii file")
        file.seek(0)
        packed = head.startswith(_GZIP)
        if packed:
            file = stack.enter_context(gzip.open(path))
        try:
            with silent_libraries():
                image = _open(file, path.stat().st_size, packed, magic == _NIFTI2, rule)
                affine = _find_affine(image, remarks)
                return _slice(image, affine, path, rule, file if packed else None)
        except (DataError, MemoryError):
            raise
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError("a gzip file that is cut or damaged") from error
        except Exception as error:
            raise DataError(f"a NIfTI file that is cut or damaged: {one_line(error)}") from error


def _open(file: BufferedIOBase, size: int, packed: bool, second: bool,
          rule: DecodingRule) -> "Nifti1Image":
    """The volume, whose voxels are not read yet; its header is checked against the file's size."""
    import nibabel

    image = (nibabel.Nifti2Image if second else nibabel.Nifti1Image).from_stream(file)
    header = image.header
    shape, dtype = tuple(map(int, header.get_data_shape())), header.get_data_dtype()
    _check_volumes(shape, rule.volume)
    if dtype.kind not in "iuf":
        raise DataError(f"expected voxels of one real number, got {header['datatype']} as datatype")
    fewest, width, height = sorted((*shape, 1, 1)[:3])
    check_size(width, height, fewest, rule.most_megapixels)
    offset = int(header.get_data_offset())
    needed = offset + math.prod(shape) * dtype.itemsize
    if offset < 0 or needed > size * (_MOST_PACKED if packed else 1):
        raise DataError(f"cut, or its header lies: expected {needed} bytes, got"
                        f" {size}{' packed ones' if packed else ''}")
    return image


def _check_volumes(shape: tuple[int, ...], volume: int | None) -> None:
    if any(side != 1 for side in shape[4:]):
        raise DataError(f"expected at most 4 dimensions, got {' x '.join(map(str, shape))}")
    count = shape[3] if len(shape) > 3 else 1
    if count > 1 and volume is None:
        raise DataError(f"expected one volume, got a series: {' x '.join(map(str, shape))}; choose"
                        " one by the rule's volume (--volume)")
    if volume is not None and volume >= count:
        raise DataError(f"expected a volume number {volume} (from 0) as the rule asks, got {count}"
                        " volumes")


def _find_affine(image: "Nifti1Image", remarks: list[str]) -> tuple[Array, bool]:
    """From voxel indices to RAS+ in mm, (4, 4), and whether the file gives it; else it is a guess.

    The sform counts before the qform, as in nibabel.
    """
    header = image.header
    codes = {kind: int(header[f"{kind}_code"]) for kind in ("sform", "qform")}
    sform = header.get_sform() if codes["sform"] > 0 else None
    try:
        qform = header.get_qform() if codes["qform"] > 0 else None
    except Exception:
        if sform is None:
            raise
        qform = None
        remarks.append("its qform is damaged; its sform is used")
    affine = header.get_base_affine() if sform is None and qform is None else (
        sform if sform is not None else qform)
    affine = np.asarray(affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError("expected an affine that can be inverted, got a singular one")
    if sform is None and qform is None:
        remarks.append("has neither sform nor qform: which side is left is a guess, and its"
                       " pictures have no geometry")
    if sform is not None and qform is not None:
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners[:, :3] *= np.array((*image.shape, 1, 1)[:3]) - 1
        off = float(np.linalg.norm(corners @ (sform - qform).T, axis=1).max())
        if not off <= _DIFFERS * np.linalg.norm(affine[:3, :3], axis=0).min():
            remarks.append(f"its sform (code {codes['sform']}) and qform (code {codes['qform']})"
                           f" are up to {off:.3g} mm apart; the sform is used")
    return affine, sform is not None or qform is not None


# The axes of a canonical volume (0: to the right, 1: to the front, 2: to the head) that a slice
# goes through, and those that run against its columns and rows.
_AXES = dict(zip(PLANES, ((2, 0, 1), (1, 0, 2), (0, 1, 2)), strict=True))


def _slice(image: "Nifti1Image", affine_and_told: tuple[Array, bool], path: Path,
           rule: DecodingRule, packed: BufferedIOBase | None) -> list[DecodedImage]:
    import nibabel

    affine, told = affine_and_told
    shape = (*image.shape, 1, 1)[:3]
    turns = nibabel.io_orientation(affine)  # of each raw axis: the canonical one, and 1 or -1
    through, across, along = _AXES[rule.plane]
    raw = int(np.flatnonzero(turns[:, 0] == through)[0])
    first, last = rule.slices or (0, shape[raw])
    if last > shape[raw]:
        raise DataError(f"expected at least {last} {rule.plane} slices as the rule asks, got"
                        f" {shape[raw]}")
    low, high = rule.limits() if rule.intensity == "window" else _find_volume_limits(
        image, rule, packed)
    part = [slice(None)] * 3
    part[raw] = slice(first, last) if turns[raw, 1] > 0 else (
        slice(shape[raw] - last, shape[raw] - first))
    voxels = _read(image, part, rule.volume).reshape(
        [len(range(*each.indices(side))) for each, side in zip(part, shape, strict=True)])
    canonical = nibabel.apply_orientation(voxels, turns)
    to_world = affine @ nibabel.orientations.inv_ornt_aff(turns, shape)
    index = np.zeros((4, 4))  # of row, column and slice to indices of the canonical volume
    index[along, 0] = index[across, 1] = -1
    index[through, 2] = index[3, 3] = 1
    index[along, 3], index[across, 3] = canonical.shape[along] - 1, canonical.shape[across] - 1
    images = []
    for k in range(last - first):
        plane = np.take(canonical, k, through)[::-1, ::-1].T
        index[through, 3] = first + k
        images.append(DecodedImage(
            apply_limits(plane.astype(np.float64), low, high).astype(np.float32),
            to_world @ index if told else None, Source(path, frame=first + k)))
    return images


def _find_volume_limits(image: "Nifti1Image", rule: DecodingRule,
                        packed: BufferedIOBase | None) -> tuple[float, float]:
    """Of the whole volume, so that a slice looks the same whichever others are read with it."""
    voxels = _read(image, [slice(None)] * 3, rule.volume)
    while packed is not None and packed.read(2**20):
        pass  # the checksum lies at the end
    return find_limits(voxels[voxels != 0], rule.percentiles, "voxels other than 0")


def _read(image: "Nifti1Image", part: list[slice], volume: int | None) -> NDArray[Any]:
    """Voxels of one volume in their units, as float32 where that holds what the file does."""
    every: list[slice | int] = [*part, volume or 0, *[0] * 4]
    chosen = tuple(every[:len(image.shape)])
    dtype = image.header.get_data_dtype()
    short = dtype.itemsize <= 2 or dtype == np.float32
    voxels = np.asarray(image.dataobj[chosen], np.float32 if short else np.float64)
    if not np.isfinite(voxels).all():
        raise DataError("expected finite voxels, got NaN or infinity")
    return voxels
