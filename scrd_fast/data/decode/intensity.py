"""From values to [0, 1]: DICOM's windows and tables (PS3.3 C.11.2.1), limits, percentiles.

All functions take float64 arrays of any shape and return float64 in [0, 1] of the same shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A lookup table (PS3.3 C.11.1.1 and C.11.2.1.1).

    first: the value that the first entry belongs to; smaller ones get it, too.
    entries: (N,), the last for all larger values; of `bits` bits each.
    """

    first: int
    entries: NDArray[np.int64]
    bits: int

    def look_up(self, values: Array) -> Array:
        """The entries of values, which are rounded where they are no integers."""
        index = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)].astype(np.float64)


@dataclass(frozen=True)
class Window:
    """A centre, a width and one of the functions of PS3.3 C.11.2.1.2."""

    centre: float
    width: float
    function: str = "LINEAR"


def apply_linear(values: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, y from 0 to 1, for a width of at least 1."""
    if width == 1:  # the ramp between the limits is empty
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def apply_linear_exact(values: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.3.2, y from 0 to 1."""
    return np.clip((values - centre) / width + 0.5, 0, 1)


def apply_sigmoid(values: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.3.1, y from 0 to 1."""
    # Beyond 50 the result is 0 or 1 to the last bit of float32, and exp does not overflow.
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50)))


FUNCTIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "LINEAR": apply_linear, "LINEAR_EXACT": apply_linear_exact, "SIGMOID": apply_sigmoid}


def apply_voi(values: Array, voi: Window | Table) -> Array:
    """What a viewer shows of values in a file's units."""
    if isinstance(voi, Table):
        return np.clip(voi.look_up(values) / (2**voi.bits - 1), 0, 1)
    # LINEAR has no meaning below a width of 1, which floating-point units bring.
    exact = voi.function == "LINEAR" and voi.width < 1
    return FUNCTIONS["LINEAR_EXACT" if exact else voi.function](values, voi.centre, voi.width)


def apply_limits(values: Array, low: float, high: float) -> Array:
    """`low` and what is below becomes 0, `high` and what is above 1, linear between."""
    return np.clip((values - low) / (high - low), 0, 1)


def find_limits(values: NDArray[np.floating], percentiles: tuple[float, float],
                of_what: str) -> tuple[float, float]:
    """The percentiles of values (N,), which may be reordered; DataError where they are the same."""
    if not values.size:
        raise DataError(f"expected {of_what} to take percentiles of, got none")
    low, high = (float(each) for each in
                 np.percentile(values, percentiles, overwrite_input=True))
    if not low < high:
        raise DataError(f"expected {of_what} that differ, got percentiles {percentiles[0]:g} and"
                        f" {percentiles[1]:g} that are both {low:g}")
    return low, high
