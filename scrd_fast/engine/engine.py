"""Engine: scores batches through one compiled network."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scrd_fast.data.images import read_image
from scrd_fast.engine.backends.runner import Runner
from scrd_fast.engine.file import Manifest
from scrd_fast.errors import DataError, InputError, ScrdError
from scrd_fast.ops.anomaly_map import combine_distances
from scrd_fast.ops.preprocess import check_images, checked_pixels, normalise


@dataclass(frozen=True)
class Result:
    """What scoring N images gives, in their order.

    scores: float32 (N,), larger is more anomalous; maps: float32 (N, H, W) or None;
    scale_weights: float32 (N, 3); p_values: float32 (N,) and anomalous: bool (N,), both None
    until decisions are calibrated; errors: index -> why that image could not be read. The
    score, map and scale weights of such an image are NaN.
    """

    scores: NDArray[np.float32]
    maps: NDArray[np.float32] | None
    scale_weights: NDArray[np.float32]
    p_values: NDArray[np.float32] | None = None
    anomalous: NDArray[np.bool_] | None = None
    errors: dict[int, str] = field(default_factory=dict)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


class Engine:
    """A loaded engine. Made by `build_engine` or `load_engine`."""

    def __init__(self, manifest: Manifest, runner: Runner, path: Path) -> None:
        self.manifest = manifest
        self.spec = manifest.scoring_spec()
        self.path = path
        self._runner = runner

    def __repr__(self) -> str:
        m = self.manifest
        return f"Engine({self.path}, {m.model['backbone']}, {m.backend}, {m.precision})"

    def score(self, batch: Any, *, maps: bool = True) -> Result:
        """Score a batch of images.

        batch: a uint8/uint16 (N, H, W) or (N, H, W, 3) array or tensor, a float32 one in [0, 1],
        a list of such images of different sizes, or a list of paths. Of a list of paths the
        unreadable files are named in `Result.errors` and the rest is scored. Raises InputError
        that names the argument, what was expected and what came.
        """
        if _is_path(batch):
            raise InputError("batch: expected a list of images or paths, got one path;"
                             f" write score([{str(batch)!r}])")
        if isinstance(batch, Sequence) and batch and all(map(_is_path, batch)):
            return self._score_paths(batch, maps)
        checked = check_images(batch, "batch")
        chunk = self.manifest.buckets[-1]
        parts = [self._score_chunk(checked[i : i + chunk], maps)
                 for i in range(0, len(checked), chunk)]
        if len(parts) == 1:
            return parts[0]
        return Result(
            np.concatenate([p.scores for p in parts]),
            np.concatenate([p.maps for p in parts if p.maps is not None]) if maps else None,
            np.concatenate([p.scale_weights for p in parts]),
        )

    def _score_chunk(self, images: torch.Tensor | list[torch.Tensor], maps: bool) -> Result:
        pixels = normalise(checked_pixels(images, self.spec), self.spec)
        distances, weights = self._runner.run(pixels.cpu())
        result = combine_distances(distances, weights, self.spec, maps=maps)
        scores = result.score(self.spec).numpy()
        if not np.isfinite(scores).all():
            raise ScrdError(
                f"score: got a value that is not finite for image {np.isfinite(scores).argmin()}"
                f" of its chunk; the {self.manifest.precision} network overflows on it: build"
                " with precision='fp32'"
            )
        return Result(scores, None if result.map is None else result.map.numpy(),
                      weights.numpy())

    def _score_paths(self, paths: Sequence[Any], maps: bool) -> Result:
        side = self.spec.input_size
        scores = np.full(len(paths), np.nan, np.float32)
        weights = np.full((len(paths), 3), np.nan, np.float32)
        all_maps = np.full((len(paths), side, side), np.nan, np.float32) if maps else None
        errors: dict[int, str] = {}
        chunk = self.manifest.buckets[-1]
        for start in range(0, len(paths), chunk):
            images, indices = [], []
            for i in range(start, min(start + chunk, len(paths))):
                try:
                    images.append(read_image(paths[i]))
                    indices.append(i)
                except DataError as error:
                    errors[i] = str(error)
            if images:
                part = self._score_chunk(check_images(images), maps)
                scores[indices], weights[indices] = part.scores, part.scale_weights
                if all_maps is not None and part.maps is not None:
                    all_maps[indices] = part.maps
        return Result(scores, all_maps, weights, errors=errors)
