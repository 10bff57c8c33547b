"""ops.simplex_noise against PyPI's opensimplex, and against what that gave when recorded."""

import itertools
import re

import numpy as np
import pytest
import torch

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.ops.implementations import interpreted
from scrd_fast.ops.simplex_noise import simplex_noise
from scrd_fast.reference.simplex_noise import octave_field, permutations, simplex_values
from tests.golden.opensimplex_noise import FIELDS, original_field, recorded
from tests.ops.each_impl import each_impl, slow, slow_interpreted
from tests.support.tolerances import allowed

SEEDS = (0, 1, -7, 111, 2**32 + 5, 2**63 - 1, -(2**63))
TOLERANCE = allowed("simplex_noise", "float64")


def seed_that_ends_high() -> int:
    """A seed whose generator is at 2^63 - 1 when the shuffle begins: adding 31 would overflow."""
    state, inverse = 2**63 - 1, pow(6364136223846793005, -1, 2**64)
    for _ in range(4):
        state = (state - 1442695040888963407) * inverse % 2**64
    return state - 2**64 if state >= 2**63 else state


@pytest.mark.parametrize("tables", [
    lambda seed: permutations(np.array([seed]))[0], _native.permutation], ids=["numpy", "native"])
def test_permutations(tables):
    internals = pytest.importorskip("opensimplex.internals")
    rng = np.random.default_rng(0)
    for seed in (*SEEDS, seed_that_ends_high(), *rng.integers(-(2**63), 2**63 - 1, 40).tolist()):
        assert np.array_equal(tables(seed), internals._init(seed)[0])


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
    original = pytest.importorskip("opensimplex").OpenSimplex(seed)
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
    original = pytest.importorskip("opensimplex").OpenSimplex(seed)
    expected = np.array([original.noise3(*p) for p in points])
    got = simplex_values(*points.T, permutations(np.array([seed])), np.zeros(len(points), int))
    assert np.abs(got - expected).max() <= TOLERANCE


# With wavelengths that are powers of two, most pixels of the last octaves lie on borders where the
# noise jumps.
LAWS = [(6, 0.6, 32), (1, 0.6, 32), (3, 0.45, 19.0), (4, 1.0, 4), (2, 0.0, 1.0)]


@pytest.mark.parametrize(("octaves", "persistence", "wavelength"), LAWS)
def test_octaves_on_a_grid(octaves, persistence, wavelength):
    shape, law = (3, 5, 37), (octaves, persistence, wavelength)
    got = octave_field(*shape, np.array(SEEDS), *law)
    assert got.shape == (len(SEEDS), *shape)
    for field, seed in zip(got, SEEDS, strict=True):
        assert np.abs(field - original_field(*shape, seed, *law)).max() <= TOLERANCE
    rounded = simplex_noise(*shape, seeds=list(SEEDS), octaves=octaves, persistence=persistence,
                            wavelength=wavelength, impl="reference")
    assert rounded.dtype == np.float32
    assert np.array_equal(rounded, got.astype(np.float32))


@slow_interpreted
@pytest.mark.parametrize(("octaves", "persistence", "wavelength"), LAWS)
@each_impl(argument="shape", reference=[], triton=[(2, 5, 12)],
           native=[(3, 21, 37), (1, 1, 3), (70, 2, 1), (2, 7, 64)])
def test_float32_octaves(impl, shape, octaves, persistence, wavelength):
    got = simplex_noise(*shape, seeds=list(SEEDS), octaves=octaves, persistence=persistence,
                        wavelength=wavelength, impl=impl)
    assert got.shape == (len(SEEDS), *shape)
    assert got.dtype == np.float32
    for field, seed in zip(got, SEEDS, strict=True):
        expected = original_field(*shape, seed, octaves, persistence, wavelength)
        assert np.abs(field - expected).max() <= allowed("simplex_noise", "float32", impl)


@pytest.mark.parametrize("name", FIELDS)
def test_recorded_noise(impl, name):
    seeds, shape, octaves, persistence, wavelength = FIELDS[name]
    got = simplex_noise(*shape, seeds=list(seeds), octaves=octaves, persistence=persistence,
                        wavelength=wavelength, impl=impl)
    assert np.abs(got - recorded(name)).max() <= allowed("simplex_noise", "float32", impl)


def test_the_recorded_noise_is_the_original():
    for name, (seeds, shape, *law) in FIELDS.items():
        for field, seed in zip(recorded(name), seeds, strict=True):
            assert np.abs(field - original_field(*shape, seed, *law)).max() <= TOLERANCE


def test_native_decides_as_the_original_far_from_the_origin(isa):
    """2000 cells away fractions are coarse in float32, and whole pixels tie in every octave."""
    tolerance = allowed("simplex_noise", "float32", "native")
    for wavelength in (0.5, 0.37):
        law = (2, 0.6, wavelength)
        got = simplex_noise(1, 3, 700, seeds=[5], octaves=2, wavelength=wavelength, impl="native")
        assert np.abs(got[0] - original_field(1, 3, 700, 5, *law)).max() <= tolerance


@slow_interpreted
@pytest.mark.gpu
@pytest.mark.parametrize(("octaves", "wavelength"), [
    (40 if interpreted() else 1024, 2.0 ** (16 if interpreted() else 1000)), (30, 3.7)])
def test_the_largest_arguments(octaves, wavelength):
    """As many octaves as are allowed, and a last one with cells as small as are."""
    law = {"seeds": [4], "octaves": octaves, "persistence": 1.0, "wavelength": wavelength}
    expected = simplex_noise(1, 1, 7, **law, impl="reference")
    got = simplex_noise(1, 1, 7, **law, impl="triton")
    assert np.abs(got - expected).max() <= octaves * allowed("simplex_noise", "float32", "triton")
    assert np.abs(expected).max() > 1


def test_triton_needs_a_device(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"^impl 'triton' of simplex_noise: there is no"):
        simplex_noise(1, 1, 1, seeds=[1], impl="triton")


def test_native_is_the_default():
    law = {"seeds": [3], "octaves": 3}
    default, native = simplex_noise(2, 5, 7, **law), simplex_noise(2, 5, 7, **law, impl="native")
    assert np.array_equal(default, native)
    assert not np.array_equal(default, simplex_noise(2, 5, 7, **law, impl="reference"))


@each_impl(argument="shape", reference=[(2, 67, 129)], native=[(2, 67, 129)],
           triton=[slow((2, 7, 29))])
def test_a_field_depends_on_its_seed_only(impl, shape):
    """Alone, repeated or among others, over the border of a block of points: the same bits."""
    seeds = np.array([3, -1, 2**40, 3])
    together = simplex_noise(*shape, seeds=seeds, octaves=2, impl=impl)
    for field, seed in zip(together, seeds, strict=True):
        alone = simplex_noise(*shape, seeds=[int(seed)], octaves=2, impl=impl)[0]
        assert np.array_equal(field, alone)
    assert np.abs(together[0] - together[1]).max() > 0.3


def test_native_does_not_depend_on_the_number_of_threads(isa):
    before = _native.threads()
    try:
        fields = []
        for threads in (1, 2, 5):
            _native.set_threads(threads)
            fields.append(simplex_noise(3, 40, 50, seeds=[1, 2, 3], impl="native"))
    finally:
        _native.set_threads(before)
    assert np.array_equal(fields[0], fields[1])
    assert np.array_equal(fields[0], fields[2])


@slow_interpreted
def test_a_larger_field_contains_the_smaller(impl):
    small = simplex_noise(1, 7, 9, seeds=[5], impl=impl)
    large = simplex_noise(3, 12, 14, seeds=[5], impl=impl)
    assert np.array_equal(small, large[:, :1, :7, :9])


def test_one_point_at_the_origin_is_zero(impl):
    field = simplex_noise(1, 1, 1, seeds=[8], impl=impl)
    assert field.shape == (1, 1, 1, 1)
    assert abs(field.item()) <= TOLERANCE


def test_seeds_of_any_layout():
    seeds = np.arange(8)
    expected = simplex_noise(1, 3, 4, seeds=seeds[::-2].tolist())
    assert np.array_equal(simplex_noise(1, 3, 4, seeds=seeds[::-2]), expected)
    assert np.array_equal(simplex_noise(1, 3, 4, seeds=seeds[::-2].astype(np.int16)), expected)
    readonly = seeds[::-2].astype(">i8")
    readonly.setflags(write=False)
    assert np.array_equal(simplex_noise(1, 3, 4, seeds=readonly), expected)


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
        ({"octaves": 10**400}, "octaves: expected at most 1024, got 1000"),
        ({"octaves": 40}, "wavelength: expected a grid of at most 2^30 wavelengths"),
        ({"wavelength": 1e-320}, "wavelength: expected a grid of at most 2^30 wavelengths"),
        ({"persistence": -0.1}, "persistence: expected a finite number from 0, got -0.1"),
        ({"octaves": 5, "persistence": 1e9}, "persistence: expected a number of which power 4"),
        ({"impl": "fast"}, "impl: expected None or one of"),
        ({"seeds": []}, "seeds: expected at least one integer, 1-D, got float64"),
        ({"seeds": [0.5]}, "seeds: expected at least one integer, 1-D, got float64"),
        ({"seeds": [[1, 2]]}, "seeds: expected at least one integer, 1-D, got int64"),
        ({"seeds": [2**70]}, "seeds: expected numbers, got object"),
        ({"seeds": [[1], [2, 3]]}, "seeds: expected numbers, got list"),
    ],
)
def test_bad_arguments(change, message):
    good = {"depth": 3, "height": 4, "width": 5, "seeds": [1], "octaves": 2, "wavelength": 32}
    arguments = good | change
    sizes = [arguments.pop(name) for name in ("depth", "height", "width")]
    with pytest.raises(InputError) as caught:
        simplex_noise(*sizes, **arguments)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": np.zeros(2)}, "seeds: expected int64 (S,), got float64 (2,)"),
        ({"seeds": np.zeros((1, 1), int)}, "seeds: expected int64 (S,), got int64 (1, 1)"),
        ({"seeds": np.arange(4)[::2]}, "seeds: expected C-contiguous memory, got"),
        ({"seeds": np.zeros(0, int)}, "seeds: expected at least one, got none"),
        ({"depth": 0}, "depth: expected a positive integer, got 0"),
        ({"depth": 2**40, "height": 2**20}, "width: expected a field that fits into memory, got"),
        ({"octaves": 0}, "octaves: expected a positive integer, got 0"),
        ({"octaves": 2**31 - 1}, "wavelength: expected at least inf pixels for 2147483647 octaves"),
        ({"persistence": float("nan")}, "persistence: expected a number from 0 whose powers"),
        ({"persistence": 1e31}, "persistence: expected a number from 0 whose powers"),
        ({"wavelength": float("nan")}, "wavelength: expected a positive number of pixels, got nan"),
        ({"wavelength": float("inf")}, "wavelength: expected a positive number of pixels, got inf"),
        ({"wavelength": 1e-9}, "wavelength: expected at least 9.31323e-09 pixels for 2 octaves"),
    ],
)
def test_native_checks_its_arguments(change, message):
    arguments = {"seeds": np.array([1]), "depth": 3, "height": 4, "width": 5, "octaves": 2,
                 "persistence": 0.5, "wavelength": 32.0} | change
    with pytest.raises(InputError, match="^" + re.escape(message)):
        _native.simplex_noise(**arguments)
