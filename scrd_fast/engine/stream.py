"""From images or files, one after the other, to their results: the one place that cuts them into
batches, looks ahead, keeps their order and finds out which of them was bad."""

import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.backends.runner import Distances
from scrd_fast.data.decode.ahead import Decoded, decode_ahead
from scrd_fast.data.decode.image import Source
from scrd_fast.errors import InputError, expect
from scrd_fast.files import as_path, is_path

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine, Pending, Result

BATCH = 8  # images that are scored together
IN_FLIGHT = 2  # batches: while the network works on one, the images of the next are read


@dataclass(frozen=True)
class Scored:
    """What scoring one image of a stream gives.

    index: its place in the stream, where a file of several images has several places; source: the
    file it comes from, and its place in that, None where an image was given; image: its pixels,
    None where the file could not be read, (H, W) or (H, W, 3), float32 in [0, 1] or, of pictures,
    what the file holds; geometry: as DecodedImage has it; score: larger is more anomalous; map:
    float32 (S, S), None where maps were not asked for; scale_weights: float32 (3,); p_value and
    anomalous: None until decisions are calibrated. error: why the file could not be read or scored:
    then score, map, scale weights and p-value are NaN, and it is not called anomalous. distances:
    float32 (h, w) at each of the three scales, see Result; None without a score, too.
    """

    index: int
    source: Source | None
    image: Any
    score: np.float32
    map: NDArray[np.float32] | None
    scale_weights: NDArray[np.float32]
    p_value: np.float32 | None = None
    anomalous: bool | None = None
    error: str | None = None
    geometry: NDArray[np.float64] | None = None
    distances: Distances | None = None

    @property
    def path(self) -> Path | None:
        """The file that the image comes from, None where an image was given."""
        return None if self.source is None else self.source.path

    def locate(self, row: float, column: float) -> NDArray[np.float64] | None:
        """Where the centre of a pixel of the map lies in the patient: (3,), mm, RAS+.

        None where the file does not tell, or there is no map.
        """
        if self.geometry is None or self.map is None:
            return None
        # The map's pixels cover the image evenly, as its resizing does.
        place = [(each + 0.5) * side / len(self.map) - 0.5 for each, side in zip(
            (row, column), self.image.shape, strict=False)]
        return np.asarray((self.geometry @ [*place, 0, 1])[:3])


@dataclass(frozen=True)
class _Entry:
    """An image to score, or why there is none."""

    index: int
    source: Source | None
    image: Any
    error: str | None = None
    geometry: NDArray[np.float64] | None = None


def stream(
    engine: "Engine", images: Iterable[Any], *, maps: bool, distances: bool = False,
    stacklevel: int = 2,
) -> Iterator[Scored]:
    """See Engine.stream. `stacklevel` is that of warnings, 2 for the loop that takes from this."""
    if isinstance(images, str | bytes | os.PathLike):
        raise InputError("images: expected images or paths, got one path;"
                         f" write stream([{os.fsdecode(images)!r}])")
    waiting: deque[tuple[list[_Entry], Pending | None]] = deque()
    for entries, batch in _cut(engine, images, stacklevel + 1):
        waiting.append((entries, _submit(engine, entries, batch, maps, distances)))
        if len(waiting) == IN_FLIGHT:
            yield from _collect(engine, *waiting.popleft(), maps, distances)
    while waiting:
        yield from _collect(engine, *waiting.popleft(), maps, distances)


def _cut(
    engine: "Engine", images: Iterable[Any], stacklevel: int
) -> Iterator[tuple[list[_Entry], Any]]:
    """Entries, and those of their images that can be scored, as the engine takes them."""
    if hasattr(images, "ndim"):  # cut without copying
        whole: Any = images
        expect(whole.ndim > 0, "images", "an array of images, or some of them", "a number")
        for start in range(0, len(whole), BATCH):
            part = whole[start : start + BATCH]
            yield [_Entry(start + i, None, part[i]) for i in range(len(part))], part
        return
    expect(isinstance(images, Iterable), "images", "an array, images or paths",
           type(images).__name__)
    entries: list[_Entry] = []
    for entry in _read(engine, images, stacklevel + 1):
        entries.append(entry)
        if len(entries) == BATCH:
            yield entries, _usable(entries)
            entries = []
    if entries:
        yield entries, _usable(entries)


def _read(engine: "Engine", images: Iterable[Any], stacklevel: int) -> Iterator[_Entry]:
    """An entry for each image, of which a file may have several."""
    index = 0
    given = (as_path(image, f"images[{place}]") if is_path(image) else image
             for place, image in enumerate(images))
    for item in decode_ahead(given, engine.spec.decoding):
        if not isinstance(item, Decoded):
            yield _Entry(index, None, item)
            index += 1
            continue
        for remark in item.remarks:
            warnings.warn(remark, stacklevel=stacklevel)
        if item.error is not None:
            yield _Entry(index, Source(item.path), None, item.error)
            index += 1
        for image in item.images:
            yield _Entry(index, image.source, image.pixels, None, image.geometry)
            index += 1


def _usable(entries: list[_Entry]) -> list[Any]:
    return [entry.image for entry in entries if entry.error is None]


def _submit(
    engine: "Engine", entries: list[_Entry], batch: Any, maps: bool, distances: bool
) -> "Pending | None":
    """The batch on its way; None where there is nothing to score, or no telling yet which of its
    files was bad."""
    if len(batch) == 0:
        return None
    try:
        return engine.submit(batch, maps=maps, distances=distances)
    except InputError as error:
        if all(entry.source is None for entry in entries):
            raise _name_in_stream(error, entries) from error
        return None


def _name_in_stream(error: InputError, entries: list[_Entry]) -> InputError:
    """The error of a batch of images, naming the image by its place in the stream."""
    text = str(error)
    found = re.match(r"batch(?:\[(\d+)\])?", text)
    if found is None:
        return error
    place = "" if found[1] is None else f"[{entries[int(found[1])].index}]"
    return type(error)(f"images{place}{text[found.end():]}")


def _collect(
    engine: "Engine", entries: list[_Entry], pending: "Pending | None", maps: bool, distances: bool
) -> Iterator[Scored]:
    good = [entry for entry in entries if entry.error is None]
    result: Result | None = None
    if pending is not None:
        try:
            result = pending.result()
        except InputError as error:
            if all(entry.source is None for entry in entries):
                raise _name_in_stream(error, entries) from error
    place = {entry.index: i for i, entry in enumerate(good)}
    for entry in entries:
        if entry.error is None and result is not None:
            yield _make_scored(entry, result, place[entry.index])
        else:
            yield _score_alone(engine, entry, maps, distances)


def _score_alone(engine: "Engine", entry: _Entry, maps: bool, distances: bool) -> Scored:
    """After an error of its batch: says whether it was this image."""
    if entry.error is None:
        try:
            result = engine.submit([entry.image], maps=maps, distances=distances).result()
            return _make_scored(entry, result, 0)
        except InputError as error:
            if entry.source is None:
                raise _name_in_stream(error, [entry]) from error
            entry = replace(entry, error=f"{entry.source.path}: {error}")
    nan, side = np.float32(np.nan), engine.spec.input_size
    known = engine.decisions is not None
    return Scored(entry.index, entry.source, entry.image, nan,
                  np.full((side, side), nan) if maps else None, np.full(3, nan),
                  nan if known else None, False if known else None, entry.error, entry.geometry)


def _make_scored(entry: _Entry, result: "Result", i: int) -> Scored:
    return Scored(
        entry.index, entry.source, entry.image, result.scores[i],
        None if result.maps is None else result.maps[i], result.scale_weights[i],
        None if result.p_values is None else result.p_values[i],
        None if result.anomalous is None else bool(result.anomalous[i]), geometry=entry.geometry,
        distances=None if result.distances is None else (
            result.distances[0][i], result.distances[1][i], result.distances[2][i]))
