"""Real pictures: tiles of brick, grass and gravel, and the same with something wrong.

scikit-image's package carries the pictures (CC0, 512 x 512 px, grey); nothing is downloaded. Normal
is what these three pictures show. What is trained on, validated on and tested on are disjoint
columns of pixels of each picture, the tested ones between the others, since pictures change
from left to right. A subject is a tile of a tested column: all images of it are alike. All seeds
have the same tiles; what is cut for training and what is put into tiles is drawn anew.

The law, written before anything was trained on or scored with it, never tuned:

| what | law |
|---|---|
| image | 64 x 64 px as in the picture, uint8 |
| training | columns 0 to 127 and 192 to 319; a picture in turn, place uniform |
| validation | columns 384 to 447; a picture in turn, place uniform |
| tested tiles | columns 128 to 191, 320 to 383 and 448 to 511, 8 rows: 24 of each picture |
| images of a tile | the normal one, and one of each kind below |
| region | an ellipse, half axes each uniform in 6 to 12 px, uniform angle, edge 1.5 px wide, |
| | centre uniform in 12 to 51 px of both sides |
| foreign | the region is of a real picture of other things (camera, coins or text, each with |
| | chance 1/3): a tile of it, place uniform but for those of sd below 15 grey levels, brought |
| | to the mean and sd of the tile that it goes into |
| worn | the region is smoothed by a Gaussian of sd 2 px |
| scratch | a line 2 px wide, length uniform in 20 to 40 px, uniform angle, centre as above, |
| | 60 grey levels darker or brighter, each with chance 1/2 |

The mask of an anomaly is where its profile exceeds 1/2.
"""

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from scrd_fast.errors import BackendUnavailable

NORMAL, FOREIGN = ("brick", "grass", "gravel"), ("camera", "coins", "text")
KINDS = ("foreign", "worn", "scratch")
SIDE = 64
TRAINED, VALIDATED, TESTED = ((0, 128), (192, 320)), ((384, 448),), ((128, 192), (320, 384),
                                                                      (448, 512))
HALF_AXES_PX, MARGIN_PX, LEAST_SD = (6.0, 12.0), 12, 15
SCRATCH_PX, SCRATCH_GREY = (20.0, 40.0), 60

Array = NDArray[Any]


def missing() -> str | None:
    """Why the pictures are not there, if they are not."""
    return None if find_spec("skimage") else "needs scikit-image; pip install scikit-image"


@lru_cache
def read_picture(name: str) -> NDArray[np.uint8]:
    """A picture (H, W) of scikit-image's package; raises BackendUnavailable without it."""
    found = find_spec("skimage")
    if found is None or found.origin is None:
        raise BackendUnavailable(f"the textures: {missing()}")
    path = Path(found.origin).parent / "data" / f"{name}.png"
    picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if picture is None:
        raise BackendUnavailable(f"{path}: expected a picture of scikit-image's package, got none")
    return picture.astype(np.uint8)


def _generator(seed: int, part: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, part]))


def cut_normals(columns: tuple[tuple[int, int], ...], count: int, rng: np.random.Generator
                ) -> NDArray[np.uint8]:
    """`count` tiles (N, 64, 64) from those columns of the pictures."""
    pictures = [read_picture(name) for name in NORMAL]
    tiles = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        first, end = columns[rng.integers(len(columns))]
        left = rng.integers(first, end - SIDE + 1)
        top = rng.integers(picture.shape[0] - SIDE + 1)
        tiles.append(picture[top : top + SIDE, left : left + SIDE])
    return np.stack(tiles)


def normal_tiles(train: int, validation: int, seed: int
                 ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """So many tiles to train and to validate on, each (N, 64, 64)."""
    return (cut_normals(TRAINED, train, _generator(seed, 0)),
            cut_normals(VALIDATED, validation, _generator(seed, 1)))


def _region(rng: np.random.Generator) -> Array:
    """The profile (64, 64) of an ellipse."""
    y, x = np.indices((SIDE, SIDE)) - rng.integers(MARGIN_PX, SIDE - MARGIN_PX, (2, 1, 1))
    (a, b), angle = rng.uniform(*HALF_AXES_PX, 2), rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    inside = (1 - np.hypot(along / a, across / b)) * min(a, b)
    return np.clip(inside / 1.5 + 0.5, 0, 1)


def _line(rng: np.random.Generator) -> Array:
    """The profile (64, 64) of a scratch."""
    y, x = np.indices((SIDE, SIDE)) - rng.integers(MARGIN_PX, SIDE - MARGIN_PX, (2, 1, 1))
    length, angle = rng.uniform(*SCRATCH_PX), rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    return np.clip(1.5 - np.abs(across), 0, 1) * (np.abs(along) <= length / 2)


def _foreign(tile: Array, rng: np.random.Generator) -> Array:
    """A piece (64, 64) of another picture, of the tile's mean and sd."""
    picture = read_picture(FOREIGN[rng.integers(len(FOREIGN))]).astype(np.float64)
    while True:
        top, left = (rng.integers(length - SIDE + 1) for length in picture.shape)
        piece = picture[top : top + SIDE, left : left + SIDE]
        if piece.std() >= LEAST_SD:
            return (piece - piece.mean()) / piece.std() * tile.std() + tile.mean()


def add_anomaly(tile: NDArray[np.uint8], kind: str, rng: np.random.Generator
                ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A tile (64, 64) with an anomaly of one of KINDS by the law above, and its mask."""
    grey = tile.astype(np.float64)
    if kind == "scratch":
        profile, other = _line(rng), grey + rng.choice((-SCRATCH_GREY, SCRATCH_GREY))
    else:
        profile = _region(rng)
        other = _foreign(grey, rng) if kind == "foreign" else gaussian_filter(grey, 2.0)
    changed = grey + profile * (other - grey)
    return np.clip(np.round(changed), 0, 255).astype(np.uint8), profile > 0.5


def tested_tiles(seed: int, per_picture: int) -> tuple[
        NDArray[np.uint8], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """The first `per_picture` tested tiles of each picture, at most 24: images (N, 64, 64), masks,
    tile numbers (N,), and the kind of each (N,), an index into KINDS, -1 of normal ones."""
    images, masks, tiles, kinds = [], [], [], []
    places = [(top, first) for top in range(0, 512, SIDE) for first, _ in TESTED][:per_picture]
    for p, name in enumerate(NORMAL):
        picture = read_picture(name)
        for k, (top, left) in enumerate(places):
            tile, number = picture[top : top + SIDE, left : left + SIDE], 24 * p + k
            rng = _generator(seed, 2 + number)
            for kind in range(-1, len(KINDS)):
                image, mask = (tile, np.zeros(tile.shape, bool)) if kind < 0 else (
                    add_anomaly(tile, KINDS[kind], rng))
                images.append(image)
                masks.append(mask)
                tiles.append(number)
                kinds.append(kind)
    return np.stack(images), np.stack(masks), np.array(tiles), np.array(kinds)
