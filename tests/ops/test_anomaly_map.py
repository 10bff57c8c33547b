"""ops.anomaly_map against the published scoring, written with torch and SciPy."""

import re

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from scrd_fast.errors import InputError
from scrd_fast.ops.anomaly_map import anomaly_map, check_features
from scrd_fast.spec import WEIGHTINGS, ScoringSpec
from tests.tolerances import allowed

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def published(teacher, student, weights: Tensor, spec: ScoringSpec) -> np.ndarray:
    """(N, S, S): cosine, upsample with align_corners, sum, scipy.ndimage.gaussian_filter."""
    size = spec.input_size
    total = np.zeros((len(weights), size, size))
    for k, (t, s) in enumerate(zip(teacher, student, strict=True)):
        w = weights[:, k, None, None].double()
        factor = w[:, None].numpy() if spec.weighting == "feature" else 1.0
        a, b = t.double().numpy() * factor, s.double().numpy() * factor
        norms = [np.maximum(np.sqrt((v * v).sum(axis=1)), 1e-8) for v in (a, b)]
        distance = torch.from_numpy(1 - (a * b).sum(axis=1) / (norms[0] * norms[1]))
        distance = w * distance if spec.weighting == "scale" else distance
        total += interpolate(distance[:, None], size=(size, size), mode="bilinear",
                             align_corners=True)[:, 0].numpy()
    return np.stack([gaussian_filter(m, sigma=spec.blur_sigma, mode="reflect") for m in total])


def sides_of(size: int) -> tuple[int, int, int]:
    return size // 4, size // 8, size // 16


def soft_weights(n: int, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.softmax(2 * torch.randn(n, 3, generator=generator), dim=1)


def largest_error(value: Tensor, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.abs(value.double().numpy() - expected).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    ("size", "sigma"),
    [(32, 0.0), (32, 8.0), (64, 0.1), (96, 4.0), (96, 0.7), (160, 2.0), (256, 4.0)],
)
def test_map_is_the_published_scoring(make_features, size, sigma, weighting, dtype):
    spec = ScoringSpec(input_size=size, blur_sigma=sigma, weighting=weighting)
    teacher = make_features(2, sides_of(size), 1, dtype)
    student = make_features(2, sides_of(size), 2, dtype)
    weights = soft_weights(2)

    result = anomaly_map(teacher, student, weights, spec)

    expected = published(teacher, student, weights, spec)
    tolerance = allowed("anomaly_map", dtype)
    assert result.map.dtype == torch.promote_types(dtype, torch.float32)
    assert largest_error(result.map, expected) <= tolerance
    assert largest_error(result.mean, expected.mean(axis=(1, 2))) <= tolerance
    assert largest_error(result.max, expected.max(axis=(1, 2))) <= tolerance


@pytest.mark.parametrize("sigma", [0.0, 0.4, 4.0, 24.0])
def test_closed_form_of_the_mean_is_the_mean_of_the_map(make_features, sigma):
    spec = ScoringSpec(input_size=96, blur_sigma=sigma, weighting="scale")
    teacher, student = make_features(3, sides_of(96), 3), make_features(3, sides_of(96), 4)
    result = anomaly_map(teacher, student, soft_weights(3), spec)
    expected = result.map.numpy().mean(axis=(1, 2))
    assert largest_error(result.mean, expected) <= allowed("anomaly_map", torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_without_maps_the_scores_are_the_same(make_features, reduction):
    spec = ScoringSpec(input_size=64, reduction=reduction)
    teacher, student = make_features(2, sides_of(64), 5), make_features(2, sides_of(64), 6)
    full = anomaly_map(teacher, student, soft_weights(2), spec)
    lean = anomaly_map(teacher, student, soft_weights(2), spec, maps=False)
    assert lean.map is None
    assert torch.equal(lean.mean, full.mean)
    assert torch.equal(lean.score(spec), full.score(spec))
    assert torch.equal(full.score(spec), full.mean if reduction == "mean" else full.max)
    if reduction == "mean":
        assert lean.max is None


def test_an_image_alone_scores_as_in_a_batch(make_features):
    spec = ScoringSpec(input_size=96, weighting="scale")
    teacher, student = make_features(5, sides_of(96), 7), make_features(5, sides_of(96), 8)
    weights = soft_weights(5)
    batch = anomaly_map(teacher, student, weights, spec)
    for i in range(5):
        alone = anomaly_map([t[i : i + 1] for t in teacher], [s[i : i + 1] for s in student],
                            weights[i : i + 1], spec)
        for one, all_of_them in zip(alone, batch, strict=True):
            error = largest_error(one[0], all_of_them[i].numpy())
            assert error <= allowed("anomaly_map", torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identical_features_give_zero(make_features, dtype):
    features = make_features(2, sides_of(64), 9, dtype)
    result = anomaly_map(features, features, soft_weights(2), ScoringSpec(input_size=64))
    assert largest_error(result.map, np.zeros((2, 64, 64))) <= allowed("anomaly_map", dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_vectors_are_at_distance_one(make_features, dtype):
    """The clamped norms keep 0 / 0 away: every scale adds 1, the blur leaves a constant."""
    zeros = [torch.zeros_like(f) for f in make_features(2, sides_of(64), 10, dtype)]
    for student in (zeros, make_features(2, sides_of(64), 10, dtype)):
        result = anomaly_map(zeros, student, soft_weights(2), ScoringSpec(input_size=64))
        assert largest_error(result.map, np.full((2, 64, 64), 3.0)) <= allowed(
            "anomaly_map", dtype)


def test_some_zero_and_some_tiny_vectors(make_features):
    """Vectors shorter than the clamp 1e-8 are not normalised to length 1."""
    spec = ScoringSpec(input_size=64, blur_sigma=1.5)
    teacher = make_features(2, sides_of(64), 11, torch.float32)
    student = make_features(2, sides_of(64), 12, torch.float32)
    for t, s in zip(teacher, student, strict=True):
        t[0, :, 0], s[1, :, :, -1] = 0, 0
        t[1, :, 1], s[0, :, 1] = t[1, :, 1] * 1e-10, s[0, :, 1] * 1e-10
    result = anomaly_map(teacher, student, soft_weights(2), spec)
    expected = published(teacher, student, soft_weights(2), spec)
    assert largest_error(result.map, expected) <= allowed("anomaly_map", torch.float32)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_non_contiguous_features(make_features, layout):
    spec = ScoringSpec(input_size=64)
    teacher, student = make_features(2, sides_of(64), 13), make_features(2, sides_of(64), 14)
    if layout == "channels_last":
        teacher = [t.contiguous(memory_format=torch.channels_last) for t in teacher]
        student = [s.contiguous(memory_format=torch.channels_last) for s in student]
    elif layout == "strided":
        teacher = [t.repeat_interleave(2, dim=3)[..., ::2] for t in teacher]
        student = [s.transpose(2, 3).contiguous().transpose(2, 3) for s in student]
    else:
        student = [s[:1].expand(2, -1, -1, -1) for s in student]
    assert not student[0].is_contiguous()
    result = anomaly_map(teacher, student, soft_weights(2), spec)
    expected = published(teacher, student, soft_weights(2), spec)
    assert largest_error(result.map, expected) <= allowed("anomaly_map", torch.float64)


def test_scoring_in_inference_mode_leaves_gradients_possible(make_features):
    """The matrices are kept between calls; an inference tensor among them would break autograd."""
    spec = ScoringSpec(input_size=32, blur_sigma=1.23456)
    teacher, student = make_features(1, sides_of(32), 15), make_features(1, sides_of(32), 16)
    with torch.inference_mode():
        anomaly_map(teacher, student, torch.ones(1, 3), spec)
    for s in student:
        s.requires_grad_()
    anomaly_map(teacher, student, torch.ones(1, 3), spec).map.square().sum().backward()
    assert all(float(s.grad.abs().max()) > 0 for s in student)


def replaced(features: list[Tensor], k: int, value: Tensor) -> list[Tensor]:
    return [value if i == k else f for i, f in enumerate(features)]


def good() -> list[Tensor]:
    return [torch.ones(2, 2, 8, 8), torch.ones(2, 3, 4, 4), torch.ones(2, 4, 2, 2)]


BAD = {
    "two teacher maps": (good()[:2], good(), torch.ones(2, 3),
                         "teacher: expected three feature maps, got 2"),
    "four student maps": (good(), [*good(), torch.ones(2, 5, 1, 1)], torch.ones(2, 3),
                          "student: expected three feature maps, got 4"),
    "three dimensions": (replaced(good(), 1, torch.ones(3, 4, 4)), good(), torch.ones(2, 3),
                         "teacher[1]: expected (N, C, h, w), got (3, 4, 4)"),
    "no image": (replaced(good(), 0, torch.ones(0, 2, 8, 8)), good(), torch.ones(2, 3),
                 "teacher[0]: expected (N, C, h, w), got (0, 2, 8, 8)"),
    "integers": (replaced(good(), 2, torch.ones(2, 4, 2, 2, dtype=torch.int64)), good(),
                 torch.ones(2, 3), "teacher[2]: expected a floating dtype, got torch.int64"),
    "student's width": (good(), replaced(good(), 1, torch.ones(2, 3, 4, 5)), torch.ones(2, 3),
                        "student[1]: expected (2, 3, 4, 4), got (2, 3, 4, 5)"),
    "student's batch": (good(), replaced(good(), 0, torch.ones(1, 2, 8, 8)), torch.ones(2, 3),
                        "student[0]: expected (2, 2, 8, 8), got (1, 2, 8, 8)"),
    "student's dtype": (good(), replaced(good(), 2, torch.ones(2, 4, 2, 2).double()),
                        torch.ones(2, 3), "student[2]: expected torch.float32, got torch.float64"),
    "two weights": (good(), good(), torch.ones(2, 2),
                    "scale_weights: expected (2, 3), got (2, 2)"),
    "one image's weights": (good(), good(), torch.ones(3),
                            "scale_weights: expected (2, 3), got (3,)"),
}


@pytest.mark.parametrize("case", BAD)
def test_features_that_do_not_fit(case):
    teacher, student, weights, message = BAD[case]
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_features(weights, "teacher", teacher, student=student)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(teacher, student, weights, ScoringSpec(input_size=32, blur_sigma=1))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("n", [1, 3])
def test_scales_of_different_batches(k, n):
    """A batch of one would broadcast: the map would be wrong without any error."""
    other = replaced(good(), k, good()[k][:1].repeat(n, 1, 1, 1))
    with pytest.raises(InputError, match=rf"^teacher\[{k}\]: expected .*, got "):
        check_features(torch.ones(2, 3), "teacher", other, student=other)


def test_features_of_another_input_size():
    spec = ScoringSpec(input_size=32, blur_sigma=1)
    wrong = replaced(good(), 2, torch.ones(2, 4, 3, 2))
    message = "teacher[2]: expected (N, C, 2, 2), got (2, 4, 3, 2)"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(wrong, wrong, torch.ones(2, 3), spec)
    message = "teacher[0]: expected (N, C, 16, 16), got (2, 2, 8, 8)"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(good(), good(), torch.ones(2, 3), ScoringSpec(input_size=64))
