"""Priors: distances judged by a normal map and a foreground, in every implementation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scrd_fast import _native
from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.kernels import prior as kernels
from scrd_fast.ops import anomaly_map as operation
from scrd_fast.ops.native_tail import native_tail
from scrd_fast.reference.anomaly_map import combine_distances, cosine_distance
from scrd_fast.reference.normal_map import NormalMap, foreground_limits
from scrd_fast.reference.prior import apply_prior, thumbnails
from scrd_fast.spec import STRIDES, Prior, ScoringSpec
from tests.ops.each_impl import each_impl, where_it_runs
from tests.ops.test_anomaly_map import NATIVE, TRITON, largest_error, sides_of, soft_weights
from tests.support.priors import random_prior
from tests.support.tolerances import allowed

anomaly_map = where_it_runs(operation.anomaly_map)
each_dtype = each_impl(reference=(torch.float64, *NATIVE), native=NATIVE, triton=TRITON)
PRIORS = {
    "one for all": random_prior(0), "5 components": random_prior(5, seed=1),
    "33 components, foreground": random_prior(33, (0.3, 0.6), seed=2),
    "foreground": Prior(foreground=(0.2, 0.7)),
}
each_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


def inputs(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Normalised network inputs (N, 3, S, S)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def thumbnail_by_hand(image: np.ndarray) -> np.ndarray:
    """(3, S, S) -> (16, 16): of each cell the rows a quarter from its upper edge and half below."""
    cell = image.shape[1] // 16
    out = np.empty((16, 16))
    for i in range(16):
        for j in range(16):
            rows = [i * cell + cell // 4, i * cell + cell // 4 + cell // 2]
            out[i, j] = image[:, rows, j * cell : (j + 1) * cell].mean()
    return out


def along(grid: np.ndarray, side: int) -> np.ndarray:
    """(16, 16) -> (side, side): between the cells' centres, one axis after the other."""
    centres = (np.arange(side) + 0.5) / side * 16 - 0.5
    rows = np.stack([np.interp(centres, np.arange(16), column) for column in grid.T], axis=1)
    return np.stack([np.interp(centres, np.arange(16), row) for row in rows])


def judged_by_hand(distances, thumbs: np.ndarray, spec: ScoringSpec) -> list[np.ndarray]:
    """reference.prior's equations, written out in float64, place by place."""
    prior, out = spec.prior, [np.empty(d.shape) for d in distances]
    for i, thumb in enumerate(thumbs.astype(np.float64)):
        seen = np.ones((16, 16))
        if prior.foreground is not None:
            low, high = foreground_limits(spec)
            near = np.pad(thumb, 1, constant_values=-np.inf)
            for y in range(16):
                for x in range(16):
                    brightest = near[y : y + 3, x : x + 3].max()
                    seen[y, x] = min(max((brightest - low) / (high - low), 0), 1)
        for k, distance in enumerate(distances):
            gain, shift = seen, np.zeros((16, 16))
            if prior.values:
                normal = NormalMap.of(prior)
                z = [min(max(float((row.reshape(16, 16) * thumb).sum() + p), -3), 3)
                     for row, p in zip(normal.projection.astype(np.float64), normal.shift,
                                       strict=True)]
                phi = [1, *z, *(v * v - 1 for v in z)]
                mean = sum(f * e[k].astype(np.float64)
                           for f, e in zip(phi, normal.expected, strict=True))
                spread = np.exp(sum(f * e[k].astype(np.float64)
                                    for f, e in zip(phi, normal.log_spread, strict=True)))
                gain = seen * (1 + prior.offset) / (spread + prior.offset)
                shift = seen * normal.level[k] - gain * mean
            side = distance.shape[1]
            out[k][i] = along(gain, side) * distance[i] + along(shift, side)
    return out


@pytest.mark.parametrize("size", [32, 96, 128, 256])
def test_thumbnails_are_means_of_two_rows_of_each_cell(size):
    images = inputs(2, size)
    found = thumbnails(images)
    assert found.dtype == torch.float32
    for image, thumb in zip(images.double().numpy(), found.numpy(), strict=True):
        np.testing.assert_allclose(thumb, thumbnail_by_hand(image), atol=1e-6)
    tail = native_tail(ScoringSpec(input_size=size, prior=random_prior(1)))
    np.testing.assert_allclose(tail.thumbnails(images.numpy()), found, atol=1e-6)
    with pytest.raises(InputError, match=r"inputs: expected float32 \(N, 3, "):
        tail.thumbnails(images[..., 1:].numpy())
    with pytest.raises(InputError, match="tail: expected one with a prior"):
        native_tail(ScoringSpec(input_size=size)).thumbnails(images.numpy())


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TRITON)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_thumbnails_of_the_gpu_are_the_references(dtype, layout):
    images = inputs(2, 96).to("cuda" if torch.cuda.is_available() else "cpu", dtype)
    found = kernels.thumbnails(images.contiguous(memory_format=layout))
    np.testing.assert_allclose(found.cpu(), thumbnails(images).cpu(), atol=1e-6)


@each_prior
@pytest.mark.parametrize("size", [32, 96])
def test_reference_is_the_equations(prior, size):
    spec = ScoringSpec(input_size=size, prior=prior)
    thumbs = thumbnails(inputs(3, size)).double()
    distances = [torch.rand(3, size // s, size // s, dtype=torch.float64) for s in STRIDES]
    expected = judged_by_hand([d.numpy() for d in distances], thumbs.numpy(), spec)
    for found, wanted in zip(apply_prior(distances, thumbs, spec), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)


@each_dtype
@each_prior
@pytest.mark.parametrize(("size", "weighting"), [(32, "none"), (96, "scale"), (128, "scale")])
def test_every_implementation_is_the_reference(make_features, prior, size, weighting, impl, dtype):
    spec = ScoringSpec(input_size=size, blur_sigma=2.0, weighting=weighting, prior=prior)
    teacher = make_features(2, sides_of(size), 1, dtype)
    student = make_features(2, sides_of(size), 2, dtype)
    weights, thumbs = soft_weights(2), thumbnails(inputs(2, size))

    result = anomaly_map(teacher, student, weights, spec, thumbnails=thumbs, impl=impl)
    lean = anomaly_map(teacher, student, weights, spec, thumbnails=thumbs, maps=False, impl=impl)

    exact = [cosine_distance(t.double(), s.double())
             for t, s in zip(teacher, student, strict=True)]
    judged = judged_by_hand([d.numpy() for d in exact], thumbs.numpy(), spec)
    expected = combine_distances([torch.from_numpy(j) for j in judged], weights.double(), spec)
    tolerance = 2 * allowed("anomaly_map", dtype, impl)  # gains of up to (1 + offset) / offset
    assert largest_error(result.map, expected.map.numpy()) <= tolerance
    assert largest_error(result.mean, expected.mean.numpy()) <= tolerance
    assert largest_error(result.max, expected.max.numpy()) <= tolerance
    assert torch.equal(lean.mean, result.mean)


@each_impl(reference=(torch.float32,), native=(torch.float32,), triton=(torch.float32,))
def test_a_foreground_of_all_changes_nothing(make_features, impl, dtype):
    """The rows of the thumbnails are all brighter than the limit."""
    spec = ScoringSpec(input_size=64, prior=Prior(foreground=(-100.0, -99.0)))
    teacher, student = (make_features(2, sides_of(64), seed, dtype) for seed in (1, 2))
    thumbs = thumbnails(inputs(2, 64))
    judged = anomaly_map(teacher, student, soft_weights(2), spec, thumbnails=thumbs, impl=impl)
    plain = anomaly_map(teacher, student, soft_weights(2), replace(spec, prior=None), impl=impl)
    assert largest_error(judged.map, plain.map.double().numpy()) <= 1e-6


@each_impl(reference=(torch.float32,), native=(torch.float32,), triton=(torch.float32,))
def test_what_is_dark_does_not_count(make_features, impl, dtype):
    spec = ScoringSpec(input_size=64, blur_sigma=0.0, prior=Prior(foreground=(0.4, 0.5)))
    teacher, student = (make_features(1, sides_of(64), seed, dtype) for seed in (1, 2))
    thumbs = torch.full((1, 16, 16), 9.0)
    thumbs[:, :, :10] = -9.0
    found = anomaly_map(teacher, student, soft_weights(1), spec, thumbnails=thumbs, impl=impl).map
    # Neighbours of what is bright count, and the coarsest distances reach over 21 pixels.
    assert not found[:, :, :21].any()
    assert found[:, :, 42:].all()


def test_images_alone_score_as_in_a_batch(make_features):
    spec = ScoringSpec(input_size=64, prior=random_prior(8))
    teacher, student = (make_features(5, sides_of(64), seed, torch.float32) for seed in (1, 2))
    weights, thumbs = soft_weights(5), thumbnails(inputs(5, 64))
    whole = operation.anomaly_map(teacher, student, weights, spec, thumbnails=thumbs,
                                  impl="native")
    for i in range(5):
        one = slice(i, i + 1)
        alone = operation.anomaly_map(
            [t[one] for t in teacher], [s[one] for s in student], weights[one], spec,
            thumbnails=thumbs[one], impl="native")
        assert torch.equal(alone.map, whole.map[one])


@pytest.mark.parametrize(("thumbs", "match"), [
    (None, "thumbnails: expected those of the images where the spec has a prior, and only there,"
           " got none and a prior"),
    (torch.zeros(2, 16, 15), r"thumbnails: expected floats \(2, 16, 16\), got torch.float32"),
    (torch.zeros(1, 16, 16), r"thumbnails: expected floats \(2, 16, 16\)"),
    (torch.zeros(2, 16, 16, dtype=torch.int32), "thumbnails: expected floats"),
    ([[0.0]], "thumbnails: expected a tensor, got list"),
])
def test_thumbnails_that_do_not_fit_are_refused(make_features, thumbs, match):
    spec = ScoringSpec(input_size=32, prior=random_prior(2))
    features = make_features(2, sides_of(32), 1, torch.float32)
    with pytest.raises(InputError, match=match):
        operation.anomaly_map(features, features, soft_weights(2), spec, thumbnails=thumbs)
    with pytest.raises(InputError, match="got some and no prior"):
        operation.anomaly_map(features, features, soft_weights(2), replace(spec, prior=None),
                              thumbnails=torch.zeros(2, 16, 16))


def test_thumbnails_that_are_not_finite_give_no_score(make_features):
    spec = ScoringSpec(input_size=32, prior=random_prior(0))
    features = make_features(1, sides_of(32), 1, torch.float32)
    weights = soft_weights(1)
    spec = replace(spec, prior=random_prior(2))
    with pytest.raises(NotFiniteError):
        operation.anomaly_map(features, features, weights, spec, impl="native",
                              thumbnails=torch.full((1, 16, 16), torch.nan))


@pytest.mark.parametrize(("changed", "match"), [
    ({"size": 33}, "size: expected a multiple of 32"),
    ({"sides": [0, 4, 2]}, "sides: expected sides from 1"),
    ({"shift": np.zeros(3, np.float32)}, "projection: expected 768 numbers, got 512"),
    ({"maps": np.zeros(7, np.float32)}, "maps: expected 7680 numbers, got 7"),
    ({"offset": 0.0}, "offset: expected a number above 0"),
    ({"foreground": (1.0, 1.0)}, "bright: expected a number above dark"),
    ({"projection": np.zeros((2, 256), np.float32)}, r"projection: expected float32 \(count,\)"),
])
def test_native_refuses_numbers_that_do_not_fit(changed, match):
    fitting = {"size": 32, "sides": [8, 4, 2], "projection": np.zeros(512, np.float32),
               "shift": np.zeros(2, np.float32), "maps": np.zeros(5 * 6 * 256, np.float32),
               "level": [0.1, 0.1, 0.1], "offset": 0.5, "foreground": None}
    prior = _native.Prior(**fitting)
    with pytest.raises(InputError, match=match):
        _native.Prior(**fitting | changed)
    with pytest.raises(InputError, match="prior: expected one for an input of 64"):
        _native.Tail(64, [16, 8, 4], 2.0, False, prior)
