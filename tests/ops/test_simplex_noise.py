"""ops.simplex_noise against PyPI's opensimplex."""

import itertools

import numpy as np
import pytest
from opensimplex import OpenSimplex

from scrd_fast.errors import InputError
from scrd_fast.ops.simplex_noise import permutations, simplex_noise, simplex_values
from tests.tolerances import allowed

SEEDS = (0, 1, -7, 111, 2**32 + 5, 2**63 - 1, -(2**63))
TOLERANCE = allowed("simplex_noise", "float64")


def tied_points() -> np.ndarray:
    """Points (P, 3) on corners, edges and faces of the lattice and of the unit cell's pieces."""
    halves = np.array(list(itertools.product((-1.5, -1, 0, 0.5, 1, 2), repeat=3)))
    # The same numbers as coordinates in the stretched lattice, brought back to space.
    lattice = np.array(list(itertools.product((-2, -0.25, 0, 0.25, 0.5, 0.75), repeat=3)))
    return np.concatenate([halves, lattice + lattice.sum(axis=1, keepdims=True) / 3])


@pytest.mark.parametrize("seed", SEEDS)
def test_random_points(seed):
    rng = np.random.default_rng(abs(seed) % 1000)
    points = np.concatenate([rng.uniform(-40, 40, (200, 3)), rng.uniform(-0.9, 0.9, (200, 3)),
                             rng.uniform(-300, 300, (50, 3))])
    original = OpenSimplex(seed)
    expected = np.array([original.noise3(*p) for p in points])
    got = simplex_values(*points.T, permutations(np.array([seed])), np.zeros(len(points), int))
    assert np.abs(got - expected).max() <= TOLERANCE
    assert np.abs(expected).max() > 0.3


@pytest.mark.parametrize("seed", [0, -7])
def test_points_that_tie(seed):
    """Where a point is equally far from two lattice points the choice must be the original's."""
    rng = np.random.default_rng(4)
    equal = rng.uniform(-5, 5, (100, 3))
    equal[:50, 1], equal[50:, 2] = equal[:50, 0], equal[50:, 1]
    points = np.concatenate([tied_points(), equal])
    original = OpenSimplex(seed)
    expected = np.array([original.noise3(*p) for p in points])
    got = simplex_values(*points.T, permutations(np.array([seed])), np.zeros(len(points), int))
    assert np.abs(got - expected).max() <= TOLERANCE


@pytest.mark.parametrize(
    ("octaves", "persistence", "wavelength"), [(6, 0.6, 32), (1, 0.6, 32), (3, 0.45, 19.0)]
)
def test_octaves_on_a_grid(octaves, persistence, wavelength):
    depth, height, width = 3, 5, 37
    got = simplex_noise(depth, height, width, seeds=list(SEEDS), octaves=octaves,
                        persistence=persistence, wavelength=wavelength)
    assert got.shape == (len(SEEDS), depth, height, width)
    assert got.dtype == np.float64
    z, y, x = (np.arange(n, dtype=float) for n in (depth, height, width))
    for field, seed in zip(got, SEEDS, strict=True):
        expected = np.zeros_like(field)
        for octave in range(octaves):
            f = 2.0**octave / wavelength
            expected += persistence**octave * OpenSimplex(seed).noise3array(x * f, y * f, z * f)
        assert np.abs(field - expected).max() <= TOLERANCE


def test_a_field_depends_on_its_seed_only():
    """Alone, repeated or among others, over the border of a block of points: the same bits."""
    seeds = np.array([3, -1, 2**40, 3])
    together = simplex_noise(2, 67, 129, seeds=seeds, octaves=2)
    for field, seed in zip(together, seeds, strict=True):
        alone = simplex_noise(2, 67, 129, seeds=[int(seed)], octaves=2)[0]
        assert np.array_equal(field, alone)
    assert np.abs(together[0] - together[1]).max() > 0.3


def test_a_larger_field_contains_the_smaller():
    small = simplex_noise(1, 7, 9, seeds=[5])
    large = simplex_noise(3, 20, 31, seeds=[5])
    assert np.array_equal(small, large[:, :1, :7, :9])


def test_one_point_at_the_origin_is_zero():
    field = simplex_noise(1, 1, 1, seeds=[8])
    assert field.shape == (1, 1, 1, 1)
    assert abs(field.item()) <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 0}, "depth: expected a positive integer, got 0"),
        ({"height": -3}, "height: expected a positive integer, got -3"),
        ({"width": 2.5}, "width: expected a positive integer, got 2.5"),
        ({"octaves": 0}, "octaves: expected a positive integer, got 0"),
        ({"wavelength": 0}, "wavelength: expected a positive number of pixels, got 0"),
        ({"wavelength": -32.0}, "wavelength: expected a positive number of pixels, got -32.0"),
        ({"wavelength": float("nan")}, "wavelength: expected a positive number of pixels, got nan"),
        ({"seeds": []}, "seeds: expected at least one integer, 1-D, got float64"),
        ({"seeds": [0.5]}, "seeds: expected at least one integer, 1-D, got float64"),
        ({"seeds": [[1, 2]]}, "seeds: expected at least one integer, 1-D, got int64"),
        ({"seeds": [2**70]}, "seeds: expected at least one integer, 1-D, got object"),
    ],
)
def test_bad_arguments(change, message):
    good = {"depth": 3, "height": 4, "width": 5, "seeds": [1], "octaves": 2, "wavelength": 32}
    arguments = good | change
    sizes = [arguments.pop(name) for name in ("depth", "height", "width")]
    with pytest.raises(InputError) as caught:
        simplex_noise(*sizes, **arguments)
    assert str(caught.value).startswith(message)
