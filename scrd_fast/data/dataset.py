"""A set of images to train on: an array, a list, or files that are read when needed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.images import is_paths, list_images, read_image
from scrd_fast.errors import InputError, expect
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.spec import ScoringSpec


class ImageSet:
    """Images by index. `source`: what ops.preprocess takes, a folder, or a list of paths."""

    def __init__(self, source: Any, name: str = "data") -> None:
        self.name = name
        paths = is_paths(source)
        self._paths = list_images(source) if paths else None
        known = paths or isinstance(source, list | np.ndarray | Tensor)
        expect(known, name, "an array, a list of images, a folder or a list of paths",
               type(source).__name__)
        self._images = self._paths if self._paths is not None else source
        expect(len(self._images) > 0, name, "at least one image", "none")

    def __len__(self) -> int:
        return len(self._images)

    def pixels(self, indices: NDArray[np.int64], spec: ScoringSpec) -> Tensor:
        """(N, 3, S, S) float32 in [0, 1]. Raises DataError or InputError naming the image."""
        if isinstance(self._images, np.ndarray):
            batch: Any = self._images[indices]
        elif isinstance(self._images, Tensor):
            batch = self._images[torch.from_numpy(indices)]
        else:
            batch = [self._images[int(i)] for i in indices]
            if self._paths is not None:
                batch = [read_image(path) for path in batch]
        try:
            return to_pixels(batch, spec)
        except InputError as error:
            raise InputError(f"{self.name}, batch of images {indices.tolist()}: {error}") from error


def split_validation(count: int, share: float, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices for training and for validation, drawn from the run's seed."""
    held = max(1, round(count * share))
    expect(held < count, "data", "at least two images, or validation= given", count)
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
