"""Golden images: made by a seeded procedure, so that no patient's picture travels in a file."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

Image = NDArray[np.uint8]
PROBE_SEED = 20250313  # of the images that a build is judged on


def _texture(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    """Band-limited noise: white noise enlarged from a random coarse grid."""
    coarse = rng.uniform(0, 255, (int(rng.integers(3, 24)),) * 2 + (3,))
    factor = side / len(coarse)
    enlarged: NDArray[np.float64] = zoom(coarse, (factor, factor, 1), mode="nearest",
                                         grid_mode=True)
    return enlarged


def _blobs(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    y, x = np.indices((side, side)) / side
    image = np.full((side, side, 3), rng.uniform(0, 120))
    for _ in range(int(rng.integers(2, 9))):
        cy, cx, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.03, 0.25)
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / radius**2)
        image += blob[..., None] * rng.uniform(-120, 220, 3)
    return image


def _edges(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    y, x = np.indices((side, side)) / side
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.05, 0.4)
    stripes = ((np.cos(angle) * x + np.sin(angle) * y) // period) % 2
    return stripes[..., None] * rng.uniform(60, 255, 3) + rng.uniform(0, 60, 3)


def _odd(rng: np.random.Generator, side: int) -> NDArray[np.float64]:
    kind = int(rng.integers(4))
    if kind == 3:
        return rng.integers(0, 256, (side, side, 3)).astype(float)
    return np.full((side, side, 3), (0.0, 255.0, rng.uniform(1, 254))[kind])


def golden_images(count: int, size: int, seed: int = 0) -> list[Image]:
    """`count` uint8 images (h, w, 3): textures, blobs, edges, constants and pure noise in turn.

    Most are size x size, the network's own; every fourth has another size and shape.
    """
    images = []
    makers = (_texture, _blobs, _edges, _texture, _blobs, _odd)
    for i in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, i]))
        image = makers[i % len(makers)](rng, 2 * size if i % 4 == 3 else size)
        if i % 4 == 3:
            height, width = rng.integers(size // 2, 2 * size, 2)
            image = image[:height, :width]
        noisy = image + rng.normal(0, rng.uniform(0, 8), image.shape)
        images.append(np.clip(np.round(noisy), 0, 255).astype(np.uint8))
    return images
