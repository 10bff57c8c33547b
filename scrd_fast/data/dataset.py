"""A set of images to train on: an array, a list, or files that are read when needed."""

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.images import is_paths, list_images, read_image
from scrd_fast.errors import DataError, InputError, expect
from scrd_fast.ops.preprocess import check_images, check_range, to_pixels
from scrd_fast.progress import show_progress
from scrd_fast.spec import ScoringSpec

_LISTED = 20  # bad images are named one by one, up to so many


class ImageSet:
    """Images by index. `source`: what ops.preprocess takes, a folder, or a list of paths.

    digest: of the pixels of all images in their order, once `check` has seen them.
    """

    def __init__(self, source: Any, name: str = "data") -> None:
        self.name, self.digest = name, ""
        self._files = is_paths(source)
        known = self._files or isinstance(source, list | np.ndarray | Tensor)
        expect(known, name, "an array, a list of images, a folder or a list of paths",
               type(source).__name__)
        self._images: Any = list_images(source) if self._files else source
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
        at every world-th image, and all come to the same end. Returns the indices of the images
        that stay.
        """
        if isinstance(self._images, np.ndarray | Tensor):
            one = self._images[:1]
            blank = torch.zeros_like(one) if isinstance(one, Tensor) else np.zeros_like(one)
            check_images(blank, self.name)  # once what is wrong with the whole array
        count = len(self)
        places = range(rank, count, world)
        shown = progress and rank == 0 and self._files
        found = []
        what = f"checking {self.name}"
        with show_progress(what, enabled=shown) as report, (
                _map_in_order(self._files)) as in_order:
            for seen in in_order(self._examine, places):
                found.append(seen)
                report(len(found), len(places), what)
        if world > 1:
            parts: list[Any] = [None] * world
            dist.all_gather_object(parts, found)
            found = [parts[i % world][i // world] for i in range(count)]
        kept = np.array([i for i, (_, reason) in enumerate(found) if not reason], dtype=np.int64)
        reasons = [reason for _, reason in found if reason]
        if reasons:
            self._leave_out(kept, reasons, skip_bad, rank)
        self.digest = hashlib.sha256(b"".join(found[i][0] for i in kept)).hexdigest()
        return kept

    def _examine(self, index: int) -> tuple[bytes, str]:
        """The digest of an image's pixels, and why it cannot be used ("" where it can)."""
        where = f"{self.name}[{index}]"
        try:
            image = self._images[index]
            image = read_image(image) if self._files else image
            expect(isinstance(image, np.ndarray | Tensor), where, "an array or a tensor",
                   type(image).__name__)
            checked = check_images(image[None], where)
            check_range(image, where, batch=False)
        except (DataError, InputError) as error:
            return b"", str(error)
        assert isinstance(checked, Tensor)
        pixels = checked.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}".encode())
        digest.update(pixels.numpy().data)
        return digest.digest(), ""

    def _leave_out(
        self, kept: NDArray[np.int64], reasons: list[str], skip_bad: bool, rank: int
    ) -> None:
        listed = "; ".join(reasons[:_LISTED])
        if len(reasons) > _LISTED:
            listed += f"; and {len(reasons) - _LISTED} more"
        text = f"{self.name}: {len(reasons)} of {len(self)} images cannot be used"
        if not skip_bad or len(kept) == 0:
            advice = "" if skip_bad else "; leave them out with skip_bad=True (--skip-bad)"
            raise (DataError if self._files else InputError)(f"{text}: {listed}{advice}")
        if rank == 0:
            # 3: who had them checked, in this package: the command line shows it as one line.
            warnings.warn(f"{text} and are left out: {listed}", stacklevel=3)
        self._images = self._some(kept)

    def _some(self, indices: NDArray[np.int64]) -> Any:
        """Images (or paths) in the form they came in."""
        if isinstance(self._images, np.ndarray):
            return self._images[indices]
        if isinstance(self._images, Tensor):
            return self._images[torch.from_numpy(indices)]
        return [self._images[int(i)] for i in indices]

    def pixels(self, indices: NDArray[np.int64], spec: ScoringSpec) -> Tensor:
        """(N, 3, S, S) float32 in [0, 1]. Raises DataError or InputError naming the image."""
        batch = self._some(indices)
        if self._files:
            batch = [read_image(path) for path in batch]
        try:
            return to_pixels(batch, spec)
        except InputError as error:
            raise InputError(f"{self.name}, batch of images {indices.tolist()}: {error}") from error


@contextmanager
def _map_in_order(threads: bool) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, or with `threads` one that works ahead in several: reading and decoding files let
    others run. An error or interrupt ends what was not yet begun."""
    if not threads:
        yield map
        return
    pool = ThreadPoolExecutor()
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def split_validation(count: int, share: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices for training and for validation, drawn from the run's seed; at least one of each."""
    expect(count > 1, "data", "at least two images, or validation= given", count)
    held = min(max(1, round(count * share)), count - 1)
    order = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def labelled_folder(root: str | os.PathLike[str]) -> tuple[list[Path], NDArray[np.int64]]:
    """Paths and labels of a test folder: good/ (or normal/) is 0, every other subfolder is 1.

    Raises InputError where one of both is missing or an image lies in none of them.
    """
    paths = list_images(root)
    loose = [path for path in paths if len(path.relative_to(root).parts) == 1]
    expect(not loose, str(root), "all images in subfolders, which are their labels", loose[:1])
    groups = [path.relative_to(root).parts[0] for path in paths]
    labels = np.array([group not in ("good", "normal") for group in groups], dtype=np.int64)
    expect(set(labels) == {0, 1}, str(root), "a subfolder good/ and at least one other",
           sorted(set(groups)))
    return paths, labels
