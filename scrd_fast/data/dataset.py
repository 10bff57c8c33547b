"""A set of images to train on: an array, a list, or files that are read when needed."""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.decode.ahead import Decoded, decode_ahead
from scrd_fast.data.decode.find import arrange_files, find_files
from scrd_fast.data.decode.image import DecodedImage
from scrd_fast.data.decode.read import is_one_picture, read_file
from scrd_fast.data.layouts import Item
from scrd_fast.data.listing import is_paths
from scrd_fast.errors import DataError, InputError, expect
from scrd_fast.files import writing
from scrd_fast.ops.preprocess import check_images, check_range, to_pixels
from scrd_fast.progress import show_progress
from scrd_fast.spec import ScoringSpec

_LISTED = 20  # bad images are named one by one, up to so many


@dataclass(frozen=True)
class _Kept:
    """An image of a file that is in the store: where it begins there, in bytes, and its shape."""

    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Seen:
    """What looking at an image found.

    place: of what it comes from, in the order given. image: itself, where in the store, or the path
    of the picture. flat: whether all pixels are the same. reason: why it cannot be used, "" where
    it can.
    """

    place: int
    image: Any = None
    digest: bytes = b""
    patient: str | None = None
    flat: bool = False
    reason: str = ""


class _Store:
    """Images at the size of the network's input, in a temporary file without a name.

    A volume would have to be read anew for each of its slices, and a series for each of its files.
    """

    def __init__(self, spec: ScoringSpec) -> None:
        self._spec = spec
        self._file: Any = None
        self._length = 0

    def add(self, pixels: NDArray[Any]) -> _Kept:
        """Raises OutputError where the disk of temporary files is full."""
        resized = to_pixels([pixels], self._spec)[0]
        kept = resized[0] if pixels.ndim == 2 else resized.permute(1, 2, 0)
        with writing("the folder for temporary files (TMPDIR)"):
            if self._file is None:  # it lives as long as this
                self._file = TemporaryFile(buffering=0)  # noqa: SIM115
            left = kept.contiguous().numpy().data.cast("B")
            start, self._length = self._length, self._length + len(left)
            while left:  # a disk that fills takes a part, and refuses the next
                left = left[self._file.write(left):]
        return _Kept(start, tuple(kept.shape))

    def read(self, kept: _Kept) -> NDArray[np.float32]:
        """float32 (S, S) or (S, S, 3) in [0, 1]."""
        assert self._file is not None
        # By place, for batches are made in one thread while another judges the model.
        data = os.pread(self._file.fileno(), 4 * int(np.prod(kept.shape)), kept.start)
        return np.frombuffer(data, np.float32).reshape(kept.shape)


class ImageSet:
    """Images by index. `source`: what ops.preprocess takes, a folder, a list of paths, or the items
    of a data set.

    spec: how files are decoded, and the size of network input that is wanted. A file may hold
    several images: how many there are is known when `check` has seen them. digest: of the pixels of
    all images in their order, and patients: what images of one share (None: nothing told), from
    then on, too.
    """

    def __init__(self, source: Any, name: str = "data", spec: ScoringSpec | None = None) -> None:
        self.name, self.digest = name, ""
        self.patients: Sequence[str | None] = ()
        self._spec = spec or ScoringSpec()
        self._known_patients: dict[Path, str | None] = {}
        self._store = _Store(self._spec)
        listed = (isinstance(source, tuple) and len(source) > 0
                  and all(isinstance(each, Item) for each in source))
        self._files = listed or is_paths(source)
        self._refused: dict[Path, str] = {}
        known = self._files or isinstance(source, list | np.ndarray | Tensor)
        expect(known, name, "an array, a list of images, a folder or a list of paths",
               type(source).__name__)
        self._images: Any = source
        if self._files:
            if listed:
                self._known_patients = {item.path: item.patient for item in source}
                found = arrange_files([item.path for item in source], stacklevel=3)
            else:
                found = find_files(source, stacklevel=3)
            self._images, self._refused = found.paths, found.refused
        expect(getattr(source, "ndim", 1) > 0 and len(self._images) > 0, name,
               "at least one image", "none")

    def __len__(self) -> int:
        return len(self._images)

    def check(
        self, *, skip_bad: bool = False, progress: bool = False, rank: int = 0, world: int = 1
    ) -> NDArray[np.int64]:
        """Look at every image (of files: read and decode it) before work is spent on the others.

        What cannot be used is listed in one DataError (of images in memory: InputError) or, with
        skip_bad, left out from here on, of which a warning tells. Of `world` processes, each looks
        at every world-th image where they are pictures or in memory, and all come to the same end.
        Returns for each image that stays the index of what it comes from.
        """
        if isinstance(self._images, np.ndarray | Tensor):
            one = self._images[:1]
            blank = torch.zeros_like(one) if isinstance(one, Tensor) else np.zeros_like(one)
            check_images(blank, self.name)  # once what is wrong with the whole array
        count = len(self)
        # What is kept in a store of its own each process has to see.
        shared = world > 1 and (not self._files or all(map(is_one_picture, self._images)))
        places = range(rank, count, world) if shared else range(count)
        shown = progress and rank == 0 and self._files
        found: list[_Seen] = []
        what = f"checking {self.name}"
        with show_progress(what, enabled=shown) as report:
            looked = self._look_at_files(places) if self._files else (
                [self._look_at(place)] for place in places)
            for done, seen in enumerate(looked, start=1):
                found += seen
                report(done, len(places), what)
        if shared:
            parts: list[Any] = [None] * world
            dist.all_gather_object(parts, found)
            found = sorted((seen for part in parts for seen in part), key=lambda seen: seen.place)
        good = [seen for seen in found if not seen.reason]
        reasons = [seen.reason for seen in found if seen.reason] + list(self._refused.values())
        if reasons:
            self._tell_of_bad(reasons, count + len(self._refused), bool(good), skip_bad, rank)
        flat = sum(seen.flat for seen in good)
        if 2 * flat > len(good) and rank == 0:
            warnings.warn(f"{self.name}: {flat} of {len(good)} images have one value alone; does"
                          " the rule for intensities fit them (--intensity, --window)?",
                          stacklevel=2)
        kept = np.array([seen.place for seen in good], dtype=np.int64)
        if self._files:
            self._images = [seen.image for seen in good]
        elif reasons:
            self._images = self._some(kept)
        self.patients = [seen.patient for seen in good]
        self.digest = hashlib.sha256(b"".join(seen.digest for seen in good)).hexdigest()
        return kept

    def _look_at_files(self, places: Sequence[int]) -> Iterator[list[_Seen]]:
        paths = (Path(self._images[place]) for place in places)
        decoded = decode_ahead(paths, self._spec.decoding)
        for place, each in zip(places, decoded, strict=True):
            for remark in each.remarks:
                warnings.warn(remark, stacklevel=3)
            yield self._look_at_file(place, each)

    def _look_at_file(self, place: int, decoded: Decoded) -> list[_Seen]:
        if decoded.error is not None:
            return [_Seen(place, reason=decoded.error)]
        as_it_is = is_one_picture(decoded.path)
        found = []
        for image in decoded.images:
            frame = "" if image.source.frame is None else f"[{image.source.frame}]"
            try:
                digest = _check(image.pixels, f"{decoded.path}{frame}")
                kept = decoded.path if as_it_is else self._store.add(image.pixels)
                flat = bool((image.pixels == image.pixels.flat[0]).all())
                found.append(_Seen(place, kept, digest, self._patient_of(image), flat))
            except InputError as error:
                found.append(_Seen(place, reason=str(error)))
        return found

    def _patient_of(self, image: DecodedImage) -> str | None:
        return self._known_patients.get(image.source.path) or image.source.whose

    def _look_at(self, place: int) -> _Seen:
        where = f"{self.name}[{place}]"
        image = self._images[place]
        try:
            expect(isinstance(image, np.ndarray | Tensor), where, "an array or a tensor",
                   type(image).__name__)
            return _Seen(place, None, _check(image, where))
        except InputError as error:
            return _Seen(place, reason=str(error))

    def _tell_of_bad(
        self, reasons: list[str], count: int, any_good: bool, skip_bad: bool, rank: int
    ) -> None:
        listed = "; ".join(reasons[:_LISTED])
        if len(reasons) > _LISTED:
            listed += f"; and {len(reasons) - _LISTED} more"
        text = f"{self.name}: {len(reasons)} of {count} images cannot be used"
        if not skip_bad or not any_good:
            advice = "" if skip_bad else "; leave them out with skip_bad=True (--skip-bad)"
            raise (DataError if self._files else InputError)(f"{text}: {listed}{advice}")
        if rank == 0:
            # 3: who had them checked, in this package: the command line shows it as one line.
            warnings.warn(f"{text} and are left out: {listed}", stacklevel=3)

    def _some(self, indices: NDArray[np.int64]) -> Any:
        """Images in the form they came in; of files the pixels."""
        if isinstance(self._images, np.ndarray):
            return self._images[indices]
        if isinstance(self._images, Tensor):
            return self._images[torch.from_numpy(indices)]
        return [self._read(self._images[int(i)]) for i in indices]

    def _read(self, image: Any) -> Any:
        if isinstance(image, _Kept):
            return self._store.read(image)
        if not self._files:
            return image
        read = read_file(Path(image), self._spec.decoding)
        if read.error is not None:
            raise DataError(read.error)
        (one,) = read.images
        assert isinstance(one, DecodedImage)
        return one.pixels

    def pixels(self, indices: NDArray[np.int64], spec: ScoringSpec) -> Tensor:
        """(N, 3, S, S) float32 in [0, 1]. Raises DataError or InputError naming the image."""
        batch = self._some(indices)
        try:
            return to_pixels(batch, spec)
        except InputError as error:
            raise InputError(f"{self.name}, batch of images {indices.tolist()}: {error}") from error


def _check(image: Any, where: str) -> bytes:
    """The digest of an image's pixels; raises InputError where it cannot be used."""
    checked = check_images(image[None], where)
    check_range(image, where, batch=False)
    assert isinstance(checked, Tensor)
    pixels = checked.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
    digest.update(pixels.numpy().data)
    return digest.digest()
