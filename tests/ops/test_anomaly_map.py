"""ops.anomaly_map, both implementations, against the published scoring in torch and SciPy."""

import re

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn.functional import interpolate

from scrd_fast.errors import BackendUnavailable, InputError, NotFiniteError
from scrd_fast.ops import anomaly_map as operation
from scrd_fast.ops.anomaly_map import check_features
from scrd_fast.spec import WEIGHTINGS, ScoringSpec
from tests.ops.each_impl import each_impl, where_it_runs
from tests.support.tolerances import allowed

NATIVE = (torch.float32, torch.bfloat16)
TRITON = (*NATIVE, torch.float16)
DTYPES = (torch.float64, *NATIVE)
each_dtype = each_impl(reference=DTYPES, native=NATIVE, triton=TRITON)
exact_dtype = each_impl(reference=(torch.float64,), native=(torch.float32,),
                        triton=(torch.float32,))
anomaly_map = where_it_runs(operation.anomaly_map)


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


@each_dtype
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(
    ("size", "sigma"),
    [(32, 0.0), (32, 8.0), (64, 0.1), (96, 4.0), (96, 0.7), (160, 2.0), (256, 4.0)],
)
def test_map_is_the_published_scoring(make_features, size, sigma, weighting, impl, dtype):
    spec = ScoringSpec(input_size=size, blur_sigma=sigma, weighting=weighting)
    count = 1 if size > 200 else 2  # Triton's interpreter takes seconds for a large map
    teacher = make_features(count, sides_of(size), 1, dtype)
    student = make_features(count, sides_of(size), 2, dtype)
    weights = soft_weights(count)

    result = anomaly_map(teacher, student, weights, spec, impl=impl)

    expected = published(teacher, student, weights, spec)
    tolerance = allowed("anomaly_map", dtype, impl)
    assert result.map.dtype == torch.promote_types(dtype, torch.float32)
    assert largest_error(result.map, expected) <= tolerance
    assert largest_error(result.mean, expected.mean(axis=(1, 2))) <= tolerance
    assert largest_error(result.max, expected.max(axis=(1, 2))) <= tolerance


@exact_dtype
@pytest.mark.parametrize("sigma", [0.0, 0.4, 4.0, 24.0])
def test_closed_form_of_the_mean_is_the_mean_of_the_map(make_features, sigma, impl, dtype):
    spec = ScoringSpec(input_size=96, blur_sigma=sigma, weighting="scale")
    teacher = make_features(3, sides_of(96), 3, dtype)
    student = make_features(3, sides_of(96), 4, dtype)
    result = anomaly_map(teacher, student, soft_weights(3), spec, impl=impl)
    expected = result.map.double().numpy().mean(axis=(1, 2))
    assert largest_error(result.mean, expected) <= allowed("anomaly_map", dtype, impl)


@exact_dtype
@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_without_maps_the_scores_are_the_same(make_features, reduction, impl, dtype):
    spec = ScoringSpec(input_size=64, reduction=reduction)
    teacher = make_features(2, sides_of(64), 5, dtype)
    student = make_features(2, sides_of(64), 6, dtype)
    full = anomaly_map(teacher, student, soft_weights(2), spec, impl=impl)
    lean = anomaly_map(teacher, student, soft_weights(2), spec, maps=False, impl=impl)
    assert lean.map is None
    assert torch.equal(lean.mean, full.mean)
    assert torch.equal(lean.score(spec), full.score(spec))
    assert torch.equal(full.score(spec), full.mean if reduction == "mean" else full.max)
    if reduction == "mean":
        assert lean.max is None


@exact_dtype
@pytest.mark.parametrize("n", [1, 3, 17])
def test_an_image_alone_scores_as_in_a_batch(make_features, n, impl, dtype):
    spec = ScoringSpec(input_size=96, weighting="scale")
    teacher = make_features(n, sides_of(96), 7, dtype)
    student = make_features(n, sides_of(96), 8, dtype)
    weights = soft_weights(n)
    batch = anomaly_map(teacher, student, weights, spec, impl=impl)
    assert batch.map.shape == (n, 96, 96)
    for i in range(n):
        alone = anomaly_map([t[i : i + 1] for t in teacher], [s[i : i + 1] for s in student],
                            weights[i : i + 1], spec, impl=impl)
        for one, all_of_them in zip(alone, batch, strict=True):
            if impl == "native":  # the work is cut the same way
                assert torch.equal(one[0], all_of_them[i])
            error = largest_error(one[0], all_of_them[i].numpy())
            assert error <= allowed("anomaly_map", dtype, impl)


@each_dtype
def test_identical_features_give_zero(make_features, impl, dtype):
    features = make_features(2, sides_of(64), 9, dtype)
    result = anomaly_map(features, features, soft_weights(2), ScoringSpec(input_size=64),
                         impl=impl)
    assert largest_error(result.map, np.zeros((2, 64, 64))) <= allowed("anomaly_map", dtype, impl)


@each_dtype
def test_zero_vectors_are_at_distance_one(make_features, impl, dtype):
    """The clamped norms keep 0 / 0 away: every scale adds 1, the blur leaves a constant."""
    zeros = [torch.zeros_like(f) for f in make_features(2, sides_of(64), 10, dtype)]
    for student in (zeros, make_features(2, sides_of(64), 10, dtype)):
        result = anomaly_map(zeros, student, soft_weights(2), ScoringSpec(input_size=64),
                             impl=impl)
        assert largest_error(result.map, np.full((2, 64, 64), 3.0)) <= allowed(
            "anomaly_map", dtype, impl)


@each_impl(reference=[torch.float32], native=[torch.float32], triton=[torch.float32])
def test_some_zero_and_some_tiny_vectors(make_features, impl, dtype):
    """Vectors shorter than the clamp 1e-8 are not normalised to length 1."""
    spec = ScoringSpec(input_size=64, blur_sigma=1.5)
    teacher = make_features(2, sides_of(64), 11, dtype)
    student = make_features(2, sides_of(64), 12, dtype)
    for t, s in zip(teacher, student, strict=True):
        t[0, :, 0], s[1, :, :, -1] = 0, 0
        t[1, :, 1], s[0, :, 1] = t[1, :, 1] * 1e-10, s[0, :, 1] * 1e-10
    result = anomaly_map(teacher, student, soft_weights(2), spec, impl=impl)
    expected = published(teacher, student, soft_weights(2), spec)
    assert largest_error(result.map, expected) <= allowed("anomaly_map", dtype, impl)


def channels_last(features: list[Tensor]) -> list[Tensor]:
    return [f.contiguous(memory_format=torch.channels_last) for f in features]


def cropped(features: list[Tensor]) -> list[Tensor]:
    return [torch.nn.functional.pad(f, (1, 2, 3, 0))[..., 3:, 1:-2] for f in features]


def with_gaps(features: list[Tensor]) -> list[Tensor]:
    return [f.repeat_interleave(2, dim=3)[..., ::2] for f in features]


def transposed(features: list[Tensor]) -> list[Tensor]:
    return [f.transpose(2, 3).contiguous().transpose(2, 3) for f in features]


def expanded(features: list[Tensor]) -> list[Tensor]:
    return [f[:1].expand(len(f), -1, -1, -1) for f in features]


@each_dtype
@pytest.mark.parametrize(
    ("of_teacher", "of_student"),
    [(channels_last, channels_last), (list, channels_last), (channels_last, list),
     (cropped, list), (list, cropped), (cropped, cropped), (with_gaps, transposed),
     (list, expanded), (expanded, channels_last)],
    ids=lambda layout: layout.__name__)
def test_memory_layouts(make_features, of_teacher, of_student, impl, dtype):
    """Sides 24, 12 and 6 and channels that no vector width divides."""
    spec = ScoringSpec(input_size=96, weighting="scale")
    channels = (33, 20, 17)
    teacher = of_teacher(make_features(2, sides_of(96), 13, dtype, channels))
    student = of_student(make_features(2, sides_of(96), 14, dtype, channels))
    assert not (teacher[0].is_contiguous() and student[0].is_contiguous())
    result = anomaly_map(teacher, student, soft_weights(2), spec, impl=impl)
    expected = published(teacher, student, soft_weights(2), spec)
    assert largest_error(result.map, expected) <= allowed("anomaly_map", dtype, impl)


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
    "a number": (replaced(good(), 0, torch.ones(())), good(), torch.ones(2, 3),
                 "teacher[0]: expected (N, C, h, w), got ()"),
    "no channel": (replaced(good(), 0, torch.ones(2, 0, 8, 8)), good(), torch.ones(2, 3),
                   "teacher[0]: expected (N, C, h, w), got (2, 0, 8, 8)"),
    "no image": (replaced(good(), 0, torch.ones(0, 2, 8, 8)), good(), torch.ones(2, 3),
                 "teacher[0]: expected (N, C, h, w), got (0, 2, 8, 8)"),
    "integers": (replaced(good(), 2, torch.ones(2, 4, 2, 2, dtype=torch.int64)), good(),
                 torch.ones(2, 3), "teacher[2]: expected float16, bfloat16, float32 or float64, got"
                 " torch.int64"),
    "eight bits": (replaced(good(), 0, good()[0].to(torch.float8_e4m3fn)), good(), torch.ones(2, 3),
                   "teacher[0]: expected float16, bfloat16, float32 or float64, got"
                   " torch.float8_e4m3fn"),
    "sparse": (good(), replaced(good(), 1, good()[1].to_sparse()), torch.ones(2, 3),
               "student[1]: expected a dense tensor with values, got a tensor that is"
               " torch.sparse_coo"),
    "meta": ([t.to("meta") for t in good()], [t.to("meta") for t in good()], torch.ones(2, 3),
             "teacher[0]: expected a dense tensor with values, got a tensor that is meta"),
    "arrays": (good(), [t.numpy() for t in good()], torch.ones(2, 3),
               "student[0]: expected a tensor, got ndarray"),
    "nothing": (good(), None, torch.ones(2, 3),
                "student: expected three feature maps, got NoneType"),
    "a list of weights": (good(), good(), [[1.0] * 3] * 2,
                          "scale_weights: expected a tensor, got list"),
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
def test_features_that_do_not_fit(case, impl):
    teacher, student, weights, message = BAD[case]
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        check_features(weights, "teacher", teacher, student=student)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(teacher, student, weights, ScoringSpec(input_size=32, blur_sigma=1),
                    impl=impl)


@exact_dtype
def test_negated_views(make_features, impl, dtype):
    """Imaginary parts of a conjugate: PyTorch notes the sign, the memory holds the other one."""
    spec = ScoringSpec(input_size=32, blur_sigma=1)
    plain = [f.to(dtype) for f in make_features(2, sides_of(32), 21)]
    negated = [torch.complex(torch.zeros_like(f), -f).conj().imag for f in plain]
    assert all(f.is_neg() for f in negated)
    student = [f.to(dtype) for f in make_features(2, sides_of(32), 22)]
    result = anomaly_map(negated, student, torch.ones(2, 3), spec, impl=impl)
    wanted = anomaly_map(plain, student, torch.ones(2, 3), spec, impl=impl)
    assert torch.equal(result.map, wanted.map)


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


NOT_FINITE = "one that is not"
TOO_LARGE = "values whose sum of squares overflows"


@each_impl(reference=NATIVE, native=NATIVE, triton=NATIVE)
@pytest.mark.parametrize(("value", "got"), [
    (float("nan"), NOT_FINITE), (float("inf"), NOT_FINITE), (-float("inf"), NOT_FINITE),
    (1e25, TOO_LARGE)])
@pytest.mark.parametrize("layout", [list, channels_last], ids=lambda layout: layout.__name__)
def test_the_feature_that_is_not_finite_is_named(make_features, layout, value, got, impl, dtype):
    """The first pixel at fault, and the tensor at fault there, whatever follows."""
    teacher = layout(make_features(3, sides_of(64), 17, dtype))
    student = layout(make_features(3, sides_of(64), 18, dtype))
    student[1][1, 4, 5, 6] = value
    teacher[1][1, 0, 5, 7] = value

    def message() -> str:
        with pytest.raises(NotFiniteError) as caught:
            anomaly_map(teacher, student, soft_weights(3), ScoringSpec(input_size=64), impl=impl)
        return str(caught.value)

    assert message() == (f"student[1]: expected finite values, got {got},"
                                  " at row 5, column 6 of image 1")
    teacher[1][1, 2, 5, 6] = value
    assert message() == (f"teacher[1]: expected finite values, got {got},"
                                  " at row 5, column 6 of image 1")
    teacher[0][2, 1, 15, 0] = value
    assert message() == (f"teacher[0]: expected finite values, got {got},"
                                  " at row 15, column 0 of image 2")


@pytest.mark.parametrize(("weights", "got"), [
    ([0.5, 0.5, 0.5], "0.500000, 0.500000, 0.500000 for image 1"),
    ([0.2, 0.3, 0.48], "0.200000, 0.300000, 0.480000 for image 1"),
    ([-0.25, 1.25, 0.0], "-0.250000, 1.250000, 0.000000 for image 1"),
    ([1.25, -0.25, 0.0], "1.250000, -0.250000, 0.000000 for image 1"),
    ([1.25, 0.0, -0.25], "1.250000, 0.000000, -0.250000 for image 1"),
    ([0.5, float("nan"), 0.5], "0.500000, nan, 0.500000 for image 1"),
    ([0.5, -float("nan"), 0.5], "0.500000, nan, 0.500000 for image 1"),
    ([float("inf"), 0.0, 0.0], "inf, 0.000000, 0.000000 for image 1"),
])
def test_weights_that_are_no_softmax(make_features, weights, got, impl):
    features = make_features(2, sides_of(32), 19, torch.float32)
    given = torch.tensor([[0.25, 0.25, 0.5], weights])
    spec = ScoringSpec(input_size=32, weighting="scale")
    message = f"scale_weights: expected three weights from 0 that sum to 1, got {got}"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(features, features, given, spec, impl=impl)
    unweighted = ScoringSpec(input_size=32, weighting="none")
    assert anomaly_map(features, features, given, unweighted, impl=impl).mean.isfinite().all()


def test_weights_that_bfloat16_rounded_pass(make_features, impl):
    features = make_features(64, sides_of(32), 20, torch.bfloat16)
    weights = soft_weights(64).bfloat16()
    assert not torch.equal(weights.double().sum(dim=1), torch.ones(64).double())
    spec = ScoringSpec(input_size=32, weighting="scale")
    assert len(anomaly_map(features, features, weights, spec, impl=impl).mean) == 64


@pytest.mark.parametrize(("change", "why"), [
    (lambda f: f.double(), "expected a dtype of ['torch.float32', 'torch.bfloat16'], got"
                           " torch.float64"),
    (lambda f: f.half(), "expected a dtype of ['torch.float32', 'torch.bfloat16'], got"
                         " torch.float16"),
    (lambda f: f.requires_grad_(), "it has no gradient, but a tensor requires one"),
])
def test_what_native_cannot_take(make_features, change, why):
    features = [change(f) for f in make_features(1, sides_of(32), 21, torch.float32)]
    spec, weights = ScoringSpec(input_size=32), torch.ones(1, 3)
    message = f"impl 'native' of anomaly_map: {why}; leave impl out or choose 'reference'"
    with pytest.raises(BackendUnavailable, match=f"^{re.escape(message)}$"):
        anomaly_map(features, features, weights, spec, impl="native")
    chosen = anomaly_map(features, features, weights, spec)
    assert torch.equal(chosen.map, anomaly_map(features, features, weights, spec,
                                               impl="reference").map)


def test_native_is_taken_where_it_can_run(make_features):
    teacher = make_features(1, sides_of(32), 22, torch.float32, channels=(65, 33, 17))
    student = [s.requires_grad_() for s in make_features(
        1, sides_of(32), 23, torch.float32, channels=(65, 33, 17))]
    spec, weights = ScoringSpec(input_size=32), torch.ones(1, 3)
    with torch.no_grad():
        chosen = anomaly_map(teacher, student, weights, spec)
        native = anomaly_map(teacher, student, weights, spec, impl="native")
        reference = anomaly_map(teacher, student, weights, spec, impl="reference")
    assert torch.equal(chosen.map, native.map)
    assert not torch.equal(chosen.map, reference.map)  # they round differently


def test_unknown_implementation(make_features):
    features = make_features(1, sides_of(32), 24, torch.float32)
    message = "impl: expected None or one of ('native', 'triton', 'reference'), got 'cuda'"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        anomaly_map(features, features, torch.ones(1, 3), ScoringSpec(input_size=32), impl="cuda")
