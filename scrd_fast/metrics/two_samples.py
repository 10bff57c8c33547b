"""Whether two samples come from one distribution, without SciPy, which who only scores has not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_EXACT_COST = 3e8  # of steps along the paths: about a second


def ks_p_value(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The p-value of the two-sample Kolmogorov-Smirnov test of values (m,) and (n,).

    The chance that two samples of one continuous distribution have distribution functions at least
    as far apart. Exact where that takes some second at most (10 000 values each, or 100 000 against
    100), from the lattice paths that go so far from the diagonal (Hodges, Arkiv for Matematik 3,
    1958); else by Kolmogorov's limiting distribution with Stephens' correction for few values
    (J. R. Statist. Soc. B 32, 1970).
    """
    m, n = len(first), len(second)
    values = np.concatenate([first, second])
    below = [np.searchsorted(np.sort(sample), values, side="right") for sample in (first, second)]
    distance = int(np.abs(below[0] * n - below[1] * m).max())  # of the functions, times m n
    if (m + n) * (min(m, n) + 2500) <= _EXACT_COST:  # 2500: what a step costs at least
        return _share_of_paths(m, n, distance)
    root = np.sqrt(m * n / (m + n))
    return _limiting(distance / (m * n) * (root + 0.12 + 0.11 / root))


def _share_of_paths(m: int, n: int, distance: int) -> float:
    """Of the paths by unit steps from (0, 0) to (m, n), the share that meets a point (i, j) with
    |i n - j m| >= distance: step by step, for all points i + j = s at once."""
    share = np.zeros(m + 1)  # by i
    share[0] = float(distance <= 0)
    for s in range(1, m + n + 1):
        i = np.arange(max(0, s - n), min(s, m) + 1)
        from_left = np.where(i > 0, share[i - 1], 0.0)
        # The last step of a path to (i, j) was one of its i steps to the right with chance i / s.
        mixed = (i * from_left + (s - i) * share[i]) / s
        share[i] = np.where(np.abs(i * n - (s - i) * m) >= distance, 1.0, mixed)
    return float(share[m])


def _limiting(x: float) -> float:
    """Kolmogorov's distribution from x on."""
    if x < 0.2:  # 1 to 12 digits, where the sum below needs ever more terms
        return 1.0
    k = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * (k * x) ** 2)), 0, 1))
