"""What values anomaly maps have, for colours and for segmentations."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import expect
from scrd_fast.records import is_number

#: A map is a sum of three cosine distances of at most 2. A prior may move values beyond 0 and this:
#: they count as these.
LARGEST = 6.0
_BINS = 600_000
_NARROWEST = 1e-3  # of a scale: noise of maps that are flat is no colour


class MapValues:
    """The values of all pixels of maps that are given one after the other, to 1e-5, in memory that
    does not grow with them, and the largest of each map."""

    def __init__(self) -> None:
        self.largest: list[float] = []
        self._counts = np.zeros(_BINS + 1, np.int64)  # the last is of LARGEST itself

    def add(self, anomaly_map: NDArray[np.float32]) -> None:
        """anomaly_map: float32 of any shape, finite."""
        self.largest.append(float(anomaly_map.max()))
        bins = (anomaly_map.clip(0, LARGEST) * (_BINS / LARGEST)).astype(np.int64)
        self._counts += np.bincount(bins.ravel(), minlength=_BINS + 1)

    def quantile(self, share: float) -> float:
        """The value that this share of all pixels does not exceed."""
        shares = self._counts.cumsum() / max(int(self._counts.sum()), 1)
        return float((np.searchsorted(shares, share) + 0.5) * (LARGEST / _BINS))


@dataclass(frozen=True)
class MapScale:
    """How maps are read, as learned from those of normal images.

    scale: between these values pixels have colour: below the first none, from the second on the
    strongest. pixel_threshold: above it a pixel is segmented as anomalous.
    """

    scale: tuple[float, float]
    pixel_threshold: float

    def __post_init__(self) -> None:
        expect(len(self.scale) == 2 and all(map(is_number, self.scale))
               and self.scale[0] < self.scale[1], "calibration.maps.scale",
               "two rising finite numbers", self.scale)
        expect(is_number(self.pixel_threshold), "calibration.maps.pixel_threshold",
               "a finite number", self.pixel_threshold)


def choose_scale(values: MapValues) -> tuple[float, float]:
    """The colours for maps of which nothing is known but themselves: from their median to their
    99.9th percentile."""
    low = values.quantile(0.5)
    return low, max(values.quantile(0.999), low + _NARROWEST)


def learn_scale(normals: MapValues, pixel_threshold: float) -> MapScale:
    """The scale of an engine, from the maps of normal images.

    Colours begin where 99 of 100 of their pixels lie below, so that a normal image is calm, and
    `pixel_threshold` is in the middle of them, unless their 99.99th percentile would be beyond the
    end. A threshold among the values of normal pixels, as rules may choose it that miss little, has
    colour, too: then they begin below it.
    """
    usual, largest = normals.quantile(0.99), normals.quantile(0.9999)
    low = min(usual, pixel_threshold - max((largest - usual) / 2, _NARROWEST / 2))
    high = max(2 * pixel_threshold - low, largest)
    return MapScale((low, high), pixel_threshold)


def conformal_threshold(values: Any, rate: float) -> float:
    """The value that at most a share `rate` of new values exceeds, on average over draws of these
    (N,) and of new ones exchangeable with them; N must be at least 1 / rate - 1.

    What lies above it has a conformal p-value of at most `rate`, see Decisions.p_values. Raises
    InputError where they are too few.
    """
    falling = np.sort(np.asarray(values, np.float32))[::-1]
    # 1e-9: 0.29 * 100 is below 29.
    above = math.floor(rate * (len(falling) + 1) + 1e-9) - 1
    expect(above >= 0, "values", f"at least 1 / {rate:g} - 1", len(falling))
    return float(falling[above])
