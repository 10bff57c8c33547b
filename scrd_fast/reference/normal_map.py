"""The numbers of a prior, and what of the input it reads; the maths is in reference.prior. Loads no
PyTorch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import expect
from scrd_fast.spec import STRIDES, THUMBNAIL, Prior, ScoringSpec, decode_values, encode_values

Array = NDArray[np.float32]
FARTHEST = 3.0  # components beyond it are of an image as no normal one was: clipped


@dataclass(frozen=True)
class NormalMap:
    """The numbers of a normal map, float32 that float16 holds, of K components; J = 1 + 2 K.

    projection (K, 256), shift (K,): from the thumbnail to its components, P and p; expected
    (J, 3, 16, 16): E; log_spread (J, 3, 16, 16): L; level (3,): v. K and J are 0 where there is no
    normal map.
    """

    projection: Array
    shift: Array
    expected: Array
    log_spread: Array
    level: Array

    @classmethod
    def of(cls, prior: Prior) -> "NormalMap":
        """That of a prior; raises InputError where a number is not finite."""
        if not prior.values:
            none = np.empty((0, len(STRIDES), THUMBNAIL, THUMBNAIL), np.float32)
            return cls(none[:, 0].reshape(0, THUMBNAIL**2), none[:, 0, 0, 0], none, none,
                       np.zeros(len(STRIDES), np.float32))
        values = np.frombuffer(decode_values(prior.values), "<f2").astype(np.float32)
        k, cells, j = prior.components, THUMBNAIL**2, 1 + 2 * prior.components
        expect(bool(np.isfinite(values).all()), "prior.values", "finite numbers", "others")
        ends = np.cumsum([k * cells, k, *[j * len(STRIDES) * cells] * 2])
        projection, shift, expected, log_spread, level = np.split(values, ends)
        maps = (j, len(STRIDES), THUMBNAIL, THUMBNAIL)
        return cls(projection.reshape(k, cells), shift, expected.reshape(maps),
                   log_spread.reshape(maps), level)

    def maps(self) -> Array:
        """E and L side by side: (J, 6 * 256)."""
        return np.concatenate([self.expected, self.log_spread], 1).reshape(
            len(self.expected), 2 * len(STRIDES) * THUMBNAIL**2)

    def encode(self) -> str:
        """As Prior.values has it, rounded to float16."""
        parts = (self.projection, self.shift, self.expected, self.log_spread, self.level)
        numbers = np.concatenate([each.ravel() for each in parts])
        return encode_values(numbers.astype("<f2").tobytes())


def thumbnail_rows(size: int) -> tuple[int, int, int]:
    """Which rows of an input of `size` pixels a thumbnail reads: the first, how far apart they are,
    and the side of a cell. Of each cell two rows, a quarter from its edges: all would take longer
    than the rest of a prior."""
    cell = size // THUMBNAIL
    return cell // 4, cell // 2, cell


def foreground_limits(spec: ScoringSpec) -> tuple[float, float]:
    """The foreground's two grey levels as thumbnails have them."""
    assert spec.prior is not None
    assert spec.prior.foreground is not None
    mean, std = np.array(spec.mean), np.array(spec.std)
    low, high = (float(((level - mean) / std).mean()) for level in spec.prior.foreground)
    return low, high
