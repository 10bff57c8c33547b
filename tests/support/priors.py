"""Priors made by hand, for the tests."""

import numpy as np

from scrd_fast.reference.normal_map import NormalMap
from scrd_fast.spec import Prior


def random_prior(
    components: int, foreground: tuple[float, float] | None = None, seed: int = 0
) -> Prior:
    """A normal map of plausible sizes: distances near 0.3, spreads within a factor of two."""
    rng = np.random.default_rng(seed)
    terms = 1 + 2 * components
    grids = (terms, 3, 16, 16)
    expected = rng.normal(0, 0.03, grids)
    expected[0] += 0.3
    normal = NormalMap(*(each.astype(np.float32) for each in (
        rng.normal(0, 0.06, (components, 256)), rng.normal(0, 1, components), expected,
        rng.normal(0, 0.1, grids), rng.uniform(0.2, 0.4, 3))))
    return Prior(people=20, images=40, components=components, foreground=foreground,
                 values=normal.encode())
