"""The two-sample Kolmogorov-Smirnov test against SciPy's."""

import time

import numpy as np
import pytest
from scipy.stats import ks_2samp

from scrd_fast.metrics.two_samples import ks_p_value


def samples(m: int, n: int, seed: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(0, 1, m), rng.normal(shift, 1, n)
    return (first, second) if seed % 3 else (np.round(first, 1), np.round(second, 1))  # ties


@pytest.mark.parametrize("seed", range(60))
def test_exact(seed):
    rng = np.random.default_rng(1000 + seed)
    m, n = rng.integers(1, 300, 2)
    first, second = samples(m, n, seed, [0, 0.3, 1, 3][seed % 4])
    expected = ks_2samp(first, second, method="exact").pvalue
    assert ks_p_value(first, second) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n"), [(10_001, 10_002), (30_000, 2000), (200_000, 200)])
def test_large_samples(m, n):
    """By the limit, from some size on; SciPy's is another approximation there."""
    for seed in (1, 2, 4):
        first, second = samples(m, n, seed, 0.01)
        assert ks_p_value(first, second) == pytest.approx(ks_2samp(first, second).pvalue, abs=0.02)


@pytest.mark.parametrize("n", [1, 100, 12_000, 200_000])
def test_the_same_values_do_not_differ(n):
    values = np.random.default_rng(0).normal(0, 1, n)
    assert ks_p_value(values, values) == 1.0


@pytest.mark.slow
def test_it_takes_no_longer_than_seconds():
    """The worst sizes, before the limit takes over and after."""
    start = time.process_time()
    for m, n in ((10_000, 10_000), (100_000, 100), (1_000_000, 100)):
        ks_p_value(*samples(m, n, 1, 0))
    assert time.process_time() - start < 30
