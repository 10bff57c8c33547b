"""Anomaly maps as files: NIfTI on the grid of what was scored, NPZ, TIFF."""

import gzip
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast import __version__
from scrd_fast.data.decode.dicom_kind import is_dicom
from scrd_fast.data.decode.dicom_pixels import MEDICAL
from scrd_fast.data.decode.image import Source
from scrd_fast.data.decode.nifti import is_nifti
from scrd_fast.data.decode.quiet import one_line, silent_libraries
from scrd_fast.data.decode.series import read_sources
from scrd_fast.engine.stream import Scored
from scrd_fast.errors import DataError, MissingExtra, OutputError, expect
from scrd_fast.files import atomic_write, writing
from scrd_fast.outputs.by_series import (
    Group,
    check_shared,
    collect_by_series,
    group_files,
    tell_shared,
)
from scrd_fast.report.file_names import clean, name_after
from scrd_fast.report.overlays import resample

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header, Nifti1Image

FORMATS = ("nifti", "npz", "tiff")
BIDS_VERSION = "1.10.0"

_ENDS = dict(zip(FORMATS, ("nii.gz", "npz", "tiff"), strict=True))
_LONGEST = 255 - len("_desc-anomaly_map.nii.gz")  # bytes of a name, on nearly every file system
_NO_PLACE = ("no map of what does not tell where it lies in the patient, as NIfTI maps do; choose"
             " npz or tiff")
_DESCRIPTION = "dataset_description.json"
_OFF = 0.1  # voxels that a slice may lie beside the grid; float32 and decimals are better than that
# What a NIfTI header says of where voxels lie, pixdim besides.
_PLACE = ("sform_code", "srow_x", "srow_y", "srow_z", "qform_code", "quatern_b", "quatern_c",
          "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")
_LONGEST_NIFTI1 = 2**15 - 1  # voxels along an axis


def name_maps(groups: Iterable[Group]) -> dict[Group, str]:
    """What the maps of each series or file are called, without their end; no two have one name.

    It is series-<SeriesInstanceUID>, or the file's own name without suffix. Where several share
    one, or it is too long, a digest of the identifier or path follows it, which is the same in
    another run. What is no printable character, or is not allowed on some system, becomes "_".
    """
    stems = {each: f"series-{clean(each)}" if isinstance(each, str) else name_after(each)
             for each in groups}
    counts = Counter(stem.casefold() for stem in stems.values())
    names = {}
    for each, stem in stems.items():
        if not stem or counts[stem.casefold()] > 1 or len(stem.encode()) > _LONGEST:
            digest = hashlib.sha256(os.fsencode(each)).hexdigest()[:12]
            stem = f"{stem.encode()[:_LONGEST - 13].decode(errors='ignore')}_{digest}"
        names[each] = stem
    return names


def write_maps(items: Sequence[Scored], folder: Path, name: str, kind: str) -> Path:
    """Write the maps of one file, or of one DICOM series, as FOLDER/NAME_desc-anomaly_map.*.

    items: what Engine.stream gives with maps, in order; those of several files must be of one
        series. Each needs its image, so none may be of a file that could not be read.
    name: see name_maps.
    kind: "nifti": a float32 volume, .nii.gz, each map resampled to its slice (bilinear, pixels as
            areas, which is how maps cover images). Of a NIfTI file it has the first three
            dimensions, the affine and both forms with their codes, bit by bit; of DICOM slices,
            (columns, rows, slices), their geometry as sform, slices sorted along their normal.
            Voxels of slices that were not scored are NaN: 0 would call them perfectly normal.
        "npz": arrays `maps`, float32 (N, S, S); `scores`, float32 (N,); `frames`, int64 (N,), -1
            for the one image of a file; `geometry`, float64 (N, 4, 4), see DecodedImage, NaN where
            it is not known; `sizes`, int64 (N, 2), rows and columns of the images, which the maps
            cover; `paths`, (N,). No pickle is in it.
        "tiff": float32 pages (S, S), one for each item.

    Returns the file's path. Raises DataError for images of several series, studies or patients, and
    where "nifti" is asked for and the images have no place, the slices are not parallel and evenly
    spaced, or the source changed since it was scored; InputError for what are no such items or
    kinds; MissingExtra without nibabel; OutputError.
    """
    expect(kind in FORMATS, "kind", f"one of {FORMATS}", repr(kind))
    _check_items(items)
    path = Path(folder) / f"{name}_desc-anomaly_map.{_ENDS[kind]}"
    if kind == "nifti":
        volume = _make_volume(items)
        with atomic_write(path) as temporary, ExitStack() as stack:
            file = stack.enter_context(open(temporary, "wb"))
            # Without name and time the same maps are the same bytes.
            volume.to_stream(stack.enter_context(gzip.GzipFile("", "wb", 1, file, mtime=0)))
    elif kind == "npz":
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **_make_arrays(items))
    else:
        import cv2

        # The bytes are ours to write: OpenCV cannot take every file name.
        _, data = cv2.imencodemulti(".tiff", [np.asarray(item.map, np.float32) for item in items])
        with atomic_write(path) as temporary:
            temporary.write_bytes(data.tobytes())
    return path


@contextmanager
def collect_maps(
    folder: Path, kind: str, paths: Sequence[Path], notes: list[str], *,
    sources: Mapping[Path, Source] | None = None,
) -> Iterator[Callable[[Scored], None]]:
    """A call that takes the results of files one after the other, and writes the maps of each
    series or other file once the last of its files is through; see write_maps and name_maps.

    folder: is made, and described where kind is "nifti". paths: all files that are scored, in their
    order. notes: gets lines that say what has no maps: one for each series or file that write_maps
    raises a DataError of, after which the others go on; and, when the block ends, one for all that
    have no place in the patient where kind is "nifti", such as pictures. sources: what read_sources
    says of `paths`, where it is read already. Raises what else write_maps and describe_maps raise;
    then nothing more may be given, and nothing more is written.
    """
    expect(kind in FORMATS, "kind", f"one of {FORMATS}", repr(kind))
    groups = group_files(paths, read_sources(paths) if sources is None else sources)
    names, shared = name_maps(groups.values()), defaultdict[str, list[Path]](list)

    def write(group: Group, items: list[Scored]) -> None:
        good = [item for item in items if item.error is None]
        files = [item.path for item in good if item.path is not None]
        if not good:
            return
        if kind == "nifti" and all(item.geometry is None for item in good):
            shared[_NO_PLACE] += files
            return
        try:
            write_maps(good, folder, names[group], kind)
        except DataError as error:
            notes.append(f"{files[0]}: no map: {str(error).removeprefix(f'{files[0]}: ')}")

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if kind == "nifti":
        describe_maps(folder, paths)
    try:
        with collect_by_series(groups, write) as take:
            yield take
    finally:
        notes += tell_shared(shared)


def _check_items(items: Sequence[Scored]) -> None:
    expect(len(items) > 0, "items", "at least one", "none")
    whose, told = set(), []
    for place, item in enumerate(items):
        expect(item.source is not None, f"items[{place}]", "an image of a file", "one without")
        assert item.source is not None
        expect(item.image is not None, f"items[{place}]", "an image that was read", item.error)
        expect(item.map is not None, f"items[{place}]", "a map", "None")
        source = item.source
        whose.add(source.series or source.path)
        told.append((source.path, (source.study, source.series, source.patient)))
    check_shared(told)
    expect(len(whose) == 1, "items", "images of one file, or of one DICOM series",
           f"those of {len(whose)}")


def _make_arrays(items: Sequence[Scored]) -> dict[str, NDArray[Any]]:
    nowhere = np.full((4, 4), np.nan)
    frames = [item.source.frame for item in items if item.source is not None]
    return {
        "maps": np.array([item.map for item in items], np.float32),
        "scores": np.array([item.score for item in items], np.float32),
        "frames": np.array([-1 if each is None else each for each in frames], np.int64),
        "geometry": np.array([nowhere if item.geometry is None else item.geometry
                              for item in items], np.float64),
        "sizes": np.array([item.image.shape[:2] for item in items], np.int64),
        "paths": np.array([str(item.path) for item in items]),
    }


def _make_volume(items: Sequence[Scored]) -> "Nifti1Image":
    path = items[0].path
    assert path is not None
    try:
        import nibabel  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"kind 'nifti' needs nibabel: {MEDICAL}") from error
    for item in items:
        if item.geometry is None:
            raise DataError(f"{item.path}: expected a file that tells where its pictures lie in the"
                            " patient, as NIfTI maps do, got none; choose npz or tiff")
    header = _read_header(path)
    return _stack(items) if header is None else _put_back(items, header)


def _read_header(path: Path) -> "Nifti1Header | None":
    """The header of a NIfTI file; None of DICOM. Others have no geometry: they have changed."""
    import nibabel

    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(path.open("rb"))
            head = file.read(4096)
            if is_dicom(head):
                return None
            if not is_nifti(head):
                raise DataError("expected DICOM or NIfTI, as it was, got other content")
            file.seek(0)
            if head.startswith(b"\x1f\x8b"):
                file = stack.enter_context(gzip.open(file))
            start = file.read(nibabel.Nifti2Header.sizeof_hdr)
            file.seek(0)
            kind = (nibabel.Nifti1Header if nibabel.Nifti1Header.may_contain_header(start)
                    else nibabel.Nifti2Header)
            with silent_libraries():
                return kind.from_fileobj(file)
    except Exception as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise DataError(f"{path}: cannot be read again: {reason}") from error


def _put_back(items: Sequence[Scored], header: "Nifti1Header") -> "Nifti1Image":
    """Maps of slices in the volume that they were cut from.

    An image's geometry leads from its pixels to the patient, the inverse of the affine from there
    to voxels: together they say which voxel each pixel is, whichever plane was cut, and however
    the volume lay in its file.
    """
    import nibabel

    path = items[0].path
    shape = (*header.get_data_shape(), 1, 1)[:3]
    affine = np.asarray(header.get_best_affine(), np.float64)
    changed = DataError(f"{path}: expected the volume that was scored, got another one of"
                        f" {' x '.join(map(str, shape))} voxels; it has changed since")
    if not abs(np.linalg.det(affine[:3, :3])) >= 1e-9:  # nor where it is NaN
        raise changed
    to_voxels = np.linalg.inv(affine)
    volume = np.full(shape, np.nan, np.float32)
    for item in items:
        assert item.geometry is not None
        assert item.map is not None
        rows, columns = item.image.shape[:2]
        found = to_voxels @ item.geometry
        exact = np.rint(found).astype(np.int64)
        last = exact[:3] @ [rows - 1, columns - 1, 0, 1]
        low, high = np.minimum(exact[:3, 3], last), np.maximum(exact[:3, 3], last)
        off = np.abs(found - exact)[:3] @ [rows - 1, columns - 1, 0, 1]
        whole = np.count_nonzero((low == 0) & (high == np.array(shape) - 1))  # axes
        if off.max() > _OFF or min(low) < 0 or (high >= shape).any() or whole < 2:
            raise changed
        i, j = np.ogrid[:rows, :columns]
        volume[tuple(each[0] * i + each[1] * j + each[3] for each in exact[:3])] = resample(
            item.map, rows, columns)
    second = isinstance(header, nibabel.Nifti2Header)
    made = (nibabel.Nifti2Image if second else nibabel.Nifti1Image)(
        volume.reshape(header.get_data_shape()[:3]), None)
    for field in _PLACE:
        made.header[field] = header[field]
    made.header["pixdim"][:4] = header["pixdim"][:4]
    return made


def _stack(items: Sequence[Scored]) -> "Nifti1Image":
    """A volume of parallel slices, (columns, rows, slices); DataError says what is uneven."""
    import nibabel

    geometries = np.array([item.geometry for item in items])
    normal = geometries[0, :3, 2] / np.linalg.norm(geometries[0, :3, 2])
    order = np.argsort(geometries[:, :3, 3] @ normal, kind="stable")
    slices, geometries = [items[i] for i in order], geometries[order]
    affine = _fit_affine(slices, geometries)
    volume = np.stack([resample(item.map, *item.image.shape[:2]).T for item in slices], axis=2)
    kind = nibabel.Nifti1Image if max(volume.shape) <= _LONGEST_NIFTI1 else nibabel.Nifti2Image
    made = kind(volume, affine)
    made.set_sform(affine, "scanner")
    made.set_qform(affine, "scanner")
    if not np.allclose(made.get_qform(), affine, atol=1e-3):
        made.set_qform(None, 0)  # a tilted gantry shears the volume; only the sform can say so
    made.header.set_xyzt_units("mm")
    return made


def _fit_affine(slices: Sequence[Scored], geometries: NDArray[np.float64]) -> NDArray[np.float64]:
    """From (column, row, slice) to RAS+ in mm, (4, 4), of slices in order."""
    first = slices[0]
    rows, columns = first.image.shape[:2]
    spacing = np.linalg.norm(geometries[0, :3, :2], axis=0)
    for item, geometry in zip(slices, geometries, strict=True):
        if item.image.shape[:2] != (rows, columns):
            raise DataError(f"{item.path}: expected slices of one size, got"
                            f" {' x '.join(map(str, item.image.shape[:2]))} rows and columns, and"
                            f" {rows} x {columns} of {first.path}")
        turned = np.linalg.norm((geometry - geometries[0])[:3, :2], axis=0)  # at the far corner
        if (turned * [rows - 1, columns - 1] > _OFF * spacing.min()).any():
            raise DataError(f"{item.path}: expected slices that are parallel and of one pixel"
                            f" spacing, got another direction or spacing than that of {first.path}")
    positions = geometries[:, :3, 3]
    affine = geometries[0][:, [1, 0, 2, 3]]
    if len(slices) == 1:
        return affine
    steps = np.diff(positions, axis=0)
    affine[:3, 2] = steps.mean(axis=0)
    depth = float(affine[:3, 2] @ geometries[0, :3, 2]) / np.linalg.norm(geometries[0, :3, 2])
    off = np.inf
    if depth > 1e-3 * spacing.min():
        found = np.linalg.solve(affine[:3, :3], (positions - positions[0]).T)
        found[2] -= np.arange(len(slices))
        off = float(np.abs(found).max())
    if off > _OFF:
        usual = np.median(steps, axis=0)
        worst = int(np.linalg.norm(steps - usual, axis=1).argmax())
        raise DataError(
            f"{slices[worst + 1].path}: expected slices that are evenly spaced, each"
            f" {_tell(usual)} mm from the one before, got {_tell(steps[worst])} mm from"
            f" {slices[worst].path}; choose npz or tiff")
    return affine


def _tell(step: NDArray[np.float64]) -> str:
    return f"({', '.join(f'{each + 0.0:.4g}' for each in np.round(step, 4))})"


def describe_maps(folder: Path, sources: Iterable[Path]) -> Path:
    """Write FOLDER/dataset_description.json, which makes NIfTI maps a derivative data set of BIDS.

    sources: files or folders that were scored; the data set that each belongs to is the nearest
    folder above it that has a dataset_description.json, else the folder itself. Returns the file's
    path. Raises OutputError, also where the folder holds the description of other data.
    """
    path = Path(folder) / _DESCRIPTION
    with writing(path):
        free = not path.exists() or _is_ours(path)
    if not free:
        raise OutputError(f"{path}: describes other data than anomaly maps of scrd-fast; choose"
                          " another folder")
    urls = dict.fromkeys(_find_dataset(Path(each)).as_uri() for each in sources)
    description = {
        "Name": "Anomaly maps",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "scrd-fast", "Version": __version__}],
        "SourceDatasets": [{"URL": each} for each in urls],
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return path


def _is_ours(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_bytes())["GeneratedBy"][0]["Name"] == "scrd-fast")
    except (ValueError, LookupError, TypeError):
        return False


def _find_dataset(source: Path) -> Path:
    place = source.resolve()
    folder = place if place.is_dir() else place.parent
    return next((each for each in (folder, *folder.parents) if (each / _DESCRIPTION).is_file()),
                folder)
