"""What the trainings of these tests train on."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """24 grey images (40, 40) that are alike but for noise."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 255, (1, 8, 8))
    return np.clip(np.kron(base, np.ones((1, 5, 5))) + rng.normal(0, 9, (24, 40, 40)), 0,
                   255).astype(np.uint8)
