"""The folder of a run: what was scored, with what and how, and small pictures of it.

`run.json` says what the run is, `scores.jsonl` has a row for each image (see `rows`), and
`gallery.zip`, an uncompressed zip, for each image that was scored and by the number of its row, a
small picture (`000012.webp`) and its map and the distances of the three scales (`000012.f16`): of
each, height and width as 16-bit integers, 0 of what was not computed, then float16 values row by
row, all of them little-endian. `evaluation.json` is there where labels were known.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scrd_fast import __version__
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import manifest_digest
from scrd_fast.engine.manifest import Manifest, read_manifest
from scrd_fast.errors import DataError, ScrdError, expect
from scrd_fast.evaluation.evaluate import Figure, Part, Threshold
from scrd_fast.files import as_path, atomic_write, writing
from scrd_fast.metrics.map_scale import MapValues, choose_scale
from scrd_fast.metrics.ranking import auroc
from scrd_fast.records import read_record
from scrd_fast.report.overlays import as_bytes
from scrd_fast.report.rows import ScoreRow, read_rows, write_json_line

FORMAT = 1
PICTURE_SIDE, MAP_SIDE = 192, 64  # the longer side of a picture, and a map's, in pixels
MOST_BYTES = 8192  # of a picture
SCALES = 3
_NOTHING = np.zeros((0, 0), np.float32)
_RUN, _SCORES, _GALLERY = "run.json", "scores.jsonl", "gallery.zip"
EVALUATION = "evaluation.json"
_HEADER = 4  # bytes: height and width
_LARGEST_SIDE = 1024  # of distances: those of the largest input, at the finest scale
# What a picture is stored with until it is small enough: side and quality.
_ATTEMPTS = ((192, 80), (192, 50), (192, 25), (128, 40), (96, 30), (64, 30))

Array = NDArray[Any]
Distances = tuple[Array, Array, Array]
Add = Callable[[ScoreRow, Array | None, Array | None, Distances | None], None]


@dataclass(frozen=True)
class RunRecord:
    """What `run.json` says beside the engine's manifest.

    date: ISO 8601, UTC; scrd_fast: the version that scored; engine: the name of its file;
    engine_digest: SHA-256 of its manifest, which stands for the whole file; data: what was scored,
    in words; scale: values of maps at which colour begins and is strongest; images: how many rows
    there are; scores_digest, gallery_digest: SHA-256 of `scores.jsonl` and `gallery.zip`.
    """

    format: int
    date: str
    scrd_fast: str
    engine: str
    engine_digest: str
    data: str
    scale: tuple[float, float]
    images: int
    scores_digest: str
    gallery_digest: str

    def __post_init__(self) -> None:
        expect(self.format == FORMAT, "run.format", FORMAT, self.format)
        expect(self.scale[0] <= self.scale[1], "run.scale", "two rising numbers", self.scale)


@dataclass(frozen=True)
class EvaluationRecord:
    """Of `evaluation.json` what a report shows; the fields are those of `Evaluation`, all of whose
    images are its first part."""

    threshold: Threshold | None
    parts: tuple[Part, ...]
    pixels: Mapping[str, Figure] | None
    p_values: Mapping[str, float] | None
    specificity: float
    patient_rule: str
    remarks: tuple[str, ...]

    def __post_init__(self) -> None:
        first = self.parts[0] if self.parts else None
        expect(first is not None and (first.level, first.group) == ("image", None)
               and "auroc" in first.figures, "evaluation.parts", "that of all images first",
               "others")


class Gallery:
    """The pictures and maps of a run, by the number of a row. Made by `Run.open_gallery`."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        self._known = {each.filename: each for each in archive.infolist()}

    def picture(self, row: int) -> bytes | None:
        """The picture as WebP, None where the image has none."""
        data = self._read(f"{row:06}.webp", MOST_BYTES)
        if data is not None and not _is_picture(data):
            raise DataError(f"{self._path}: {row:06}.webp: expected a WebP of at most"
                            f" {PICTURE_SIDE} pixels, got other content")
        return data

    def map(self, row: int) -> NDArray[np.float32] | None:
        """The map, float32 (h, w) of at most MAP_SIDE, None where it was not computed."""
        return self._arrays(row)[0]

    def distances(self, row: int) -> tuple[NDArray[np.float32], ...] | None:
        """Those of the three scales, float32 (h_k, w_k), None where the backend gave none."""
        given = tuple(each for each in self._arrays(row)[1:] if each is not None)
        return given if len(given) == SCALES else None

    def _read(self, name: str, most: int) -> bytes | None:
        if name not in self._known:
            return None
        info = self._known[name]
        if info.compress_type != zipfile.ZIP_STORED or not (
                info.file_size == info.compress_size <= most):
            raise DataError(f"{self._path}: {name}: expected at most {most} uncompressed bytes,"
                            f" got {info.file_size}")
        try:
            return self._archive.read(info)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError) as error:
            raise DataError(f"{self._path}: {name}: damaged ({error})") from error

    def _arrays(self, row: int) -> list[NDArray[np.float32] | None]:
        """The map and the three distances."""
        name, sides = f"{row:06}.f16", (MAP_SIDE, *[_LARGEST_SIDE] * SCALES)
        data = self._read(name, sum(_HEADER + 2 * side**2 for side in sides))
        if data is None:
            return [None] * len(sides)
        found: list[NDArray[np.float32] | None] = []
        start = 0
        for side in sides:
            size = data[start : start + _HEADER].ljust(_HEADER, b"\xff")
            height, width = np.frombuffer(size, "<u2").tolist()
            start += _HEADER + 2 * height * width
            if max(height, width) > side or start > len(data):
                raise DataError(f"{self._path}: {name}: expected float16 values of at most"
                                f" {side} x {side}, got too few, or {height} x {width}")
            values = np.frombuffer(data[:start], "<f2", offset=start - 2 * height * width)
            if not np.isfinite(values).all():
                raise DataError(f"{self._path}: {name}: expected finite values, got others")
            empty = height * width == 0
            found.append(None if empty else values.astype(np.float32).reshape(height, width))
        if start != len(data):
            raise DataError(f"{self._path}: {name}: expected {start} bytes, got {len(data)}")
        return found


def _is_picture(data: bytes) -> bool:
    """Whether it is such a WebP as is written here, whole: its size (RFC 9649, 2.5 and RFC 6386,
    9.1) is looked at before it takes memory, here and in a browser."""
    width, height = (int.from_bytes(data[i : i + 2], "little") for i in (26, 28))
    return (data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8 "
            and 1 <= width <= PICTURE_SIDE and 1 <= height <= PICTURE_SIDE
            and cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None)


@dataclass(frozen=True, eq=False)
class Run:
    """A run as its folder has it; rows in the order of scoring; evaluation: None without labels."""

    folder: Path
    record: RunRecord
    manifest: Manifest
    rows: tuple[ScoreRow, ...]
    evaluation: EvaluationRecord | None

    @contextmanager
    def open_gallery(self) -> Iterator[Gallery]:
        """Its pictures and maps; raises DataError where the file is damaged, or another kind."""
        path = self.folder / _GALLERY
        with ExitStack() as stack:
            if _digest(path) != self.record.gallery_digest:
                raise DataError(f"{path}: expected the gallery of this run, got another file")
            try:
                archive = stack.enter_context(zipfile.ZipFile(path))
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror}") from error
            except (zipfile.BadZipFile, ValueError, RuntimeError) as error:
                raise DataError(f"{path}: expected a gallery, got another kind of file ({error})"
                                ) from error
            yield Gallery(path, archive)


@contextmanager
def collect_run(folder: Path, engine: Engine, data: str) -> Iterator[Add]:
    """A call that takes the rows of a run one after the other; when the block ends well the folder
    has them, else what it had before.

    data: what is scored, in words. The call takes a row, and of an image that was scored its
    pixels (uint8, uint16 or float32 in [0, 1], (H, W) or (H, W, 3)), its map (float32 (S, S)), and
    its distances (float32 (h_k, w_k)), each of them None where there is none. An image takes
    about 1 KB of memory until the end. Colours are on the engine's scale where it was learned, else
    on one of the run's own maps. Raises OutputError.
    """
    scale = None
    if engine.decisions is not None and engine.decisions.maps is not None:
        scale = engine.decisions.maps.scale
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # The last to be entered is the first to be renamed: run.json comes last, and vouches.
        record, scores, gallery = (stack.enter_context(atomic_write(folder / name))
                                   for name in (_RUN, _SCORES, _GALLERY))
        values, digest, count = MapValues(), hashlib.sha256(), 0
        with writing(folder):
            table = stack.enter_context(open(scores, "wb"))
            archive = stack.enter_context(zipfile.ZipFile(gallery, "w"))

        def add(row: ScoreRow, image: Array | None, anomaly_map: Array | None,
                distances: Distances | None) -> None:
            nonlocal count
            line = f"{write_json_line(row)}\n".encode()
            if scale is None and anomaly_map is not None:
                values.add(anomaly_map)
            with writing(folder):
                table.write(line)
                for name, content in _list_members(image, anomaly_map, distances):
                    archive.writestr(f"{count:06}{name}", content)
            digest.update(line)
            count += 1

        yield add
        with writing(folder):
            table.close()
            archive.close()
        if scale is None:
            scale = choose_scale(values) if values.largest else (0.0, 1.0)
        told = RunRecord(FORMAT, datetime.now(UTC).isoformat(timespec="seconds"), __version__,
                         engine.path.name, manifest_digest(engine.manifest), data, scale, count,
                         digest.hexdigest(), _digest(gallery))
        record.write_text(json.dumps(asdict(told) | {"manifest": asdict(engine.manifest)},
                                     indent=1) + "\n")


def _list_members(image: Array | None, anomaly_map: Array | None,
                  distances: Distances | None) -> Iterator[tuple[str, bytes]]:
    if image is not None:
        yield ".webp", shrink_picture(as_bytes(image))
    if anomaly_map is not None or distances is not None:
        yield ".f16", b"".join(map(_pack, (
            _NOTHING if anomaly_map is None else shrink(anomaly_map, MAP_SIDE),
            *([_NOTHING] * SCALES if distances is None else
              [shrink(each, MAP_SIDE) for each in distances]))))


def _pack(values: Array) -> bytes:
    return np.array(values.shape, "<u2").tobytes() + values.astype("<f2").tobytes()


def shrink(values: Array, side: int) -> Array:
    """Values (h, w, ...) so that no side is longer than that, each the mean of what it covers."""
    height, width = values.shape[:2]
    longer = max(height, width)
    if longer <= side:
        return values
    size = tuple(max(1, round(each * side / longer)) for each in (width, height))
    return np.asarray(cv2.resize(values, size, interpolation=cv2.INTER_AREA))


def shrink_picture(image: NDArray[np.uint8]) -> bytes:
    """The image, uint8 (H, W) or (H, W, 3), as WebP of at most PICTURE_SIDE and MOST_BYTES."""
    for side, quality in _ATTEMPTS:
        small = shrink(image, side)
        _, data = cv2.imencode(".webp", small if small.ndim == 2 else small[..., ::-1],
                               [cv2.IMWRITE_WEBP_QUALITY, quality])
        if len(data) <= MOST_BYTES:
            break
    return data.tobytes()


def list_files(folder: Path) -> list[Path]:
    """The files of a run."""
    return [folder / name for name in (_RUN, _SCORES, _GALLERY, EVALUATION)]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder; raises DataError where a file of it is missing, damaged or foreign."""
    folder = as_path(folder, "folder")
    path = folder / _RUN
    values = _read_json(path, "a run; scrd-fast score --run FOLDER writes one")
    try:
        expect(isinstance(values, dict), "run", "a JSON object", type(values).__name__)
        manifest = read_manifest(values.pop("manifest", None))
        record = read_record(RunRecord, values, "run")
    except ScrdError as error:
        raise DataError(f"{path}: expected a run of format {FORMAT}: {error}") from error
    scores = folder / _SCORES
    if _digest(scores) != record.scores_digest:
        raise DataError(f"{scores}: expected the {record.images} rows that {_RUN} tells of, got"
                        " others")
    rows = tuple(read_rows(scores))
    return Run(folder, record, manifest, rows, _read_evaluation(folder / EVALUATION, rows))


def _read_evaluation(path: Path, rows: Sequence[ScoreRow]) -> EvaluationRecord | None:
    """None where there is none; raises DataError for one of other scores."""
    if not path.exists():
        return None
    values = _read_json(path, "an evaluation")
    try:
        expect(isinstance(values, dict), "evaluation", "a JSON object", type(values).__name__)
        shown = {each.name for each in fields(EvaluationRecord)}
        found = read_record(EvaluationRecord, {
            name: value for name, value in values.items() if name in shown}, "evaluation")
    except ScrdError as error:
        raise DataError(f"{path}: expected an evaluation: {error}") from error
    if not _is_of(found, rows):
        raise DataError(f"{path}: expected an evaluation of the scores beside it, got one of"
                        " others; remove it, or evaluate again")
    return found


def _is_of(evaluation: EvaluationRecord, rows: Sequence[ScoreRow]) -> bool:
    """Whether it has the number of images of both kinds, and their AUROC."""
    known = [row for row in rows if row.label is not None and row.score is not None]
    labels, whole = [row.label for row in known], evaluation.parts[0]
    if set(labels) != {0, 1} or (
            labels.count(0), labels.count(1)) != (whole.normal, whole.anomalous):
        return False
    scores = np.array([row.score for row in known], np.float32)
    return abs(auroc(labels, scores) - whole.figures["auroc"].value) < 1e-9


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: expected {what}, got: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected {what}, got no JSON ({error})") from error


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
