"""ops.preprocess against OpenCV's bilinear resize of float64 images."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable, InputError
from scrd_fast.ops.implementations import interpreted
from scrd_fast.ops.preprocess import check_images, preprocess, to_pixels
from scrd_fast.reference.preprocess import checked_pixels
from scrd_fast.spec import IMAGENET_MEAN, IMAGENET_STD, ScoringSpec
from tests.ops.each_impl import each_impl, slow_interpreted, where_it_runs
from tests.ops.preprocessing import FULL_SCALE, SPEC, in_layout, on_gpu, random_image
from tests.support.tolerances import allowed

# Both axes shrunk and stretched, each alone, edges of one pixel, and rows beyond 12 times the
# output's length, of which the native implementation reads the needed columns only.
SHAPES = [(64, 64), (31, 47), (97, 131), (13, 211), (64, 29), (29, 64), (1, 1), (1, 9), (5, 1),
          (2, 2), (3, 769), (1500, 2), (1, 30001)]


def tolerance_of(run: Callable[..., torch.Tensor], dtype: str) -> float:
    return allowed("preprocess", dtype, run.keywords["impl"])


def by_opencv(image: np.ndarray, full_scale: float, size: int = 64) -> np.ndarray:
    """(3, S, S) float64: divide, resize in float64, three channels, mean and std."""
    cv2 = pytest.importorskip("cv2")
    pixels = cv2.resize(image.astype(np.float64) / full_scale, (size, size),
                        interpolation=cv2.INTER_LINEAR)
    pixels = np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels
    return ((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)


def largest_error(got: torch.Tensor, expected: np.ndarray) -> float:
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    return float(np.abs(got.double().numpy() - expected).max())


@pytest.mark.parametrize("dtype", FULL_SCALE)
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size_and_dtype(run, shape, colour, dtype):
    image = random_image((*shape, 3) if colour else shape, dtype)
    expected = by_opencv(image, FULL_SCALE[dtype])[None]
    assert largest_error(run(image[None], SPEC), expected) <= tolerance_of(run, dtype)


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 31, 47, 3), (2, 64, 64), (2, 31, 47)])
def test_the_result_is_channels_first_contiguous(run, shape):
    assert run(random_image(shape, "uint8"), SPEC).is_contiguous()


@pytest.mark.parametrize("size", [32, 96, 256])
def test_other_input_sizes(run, size):
    image = random_image((75, 58, 3), "uint8")
    got = run(image[None], ScoringSpec(input_size=size, blur_sigma=4))
    expected = by_opencv(image, 255.0, size)[None]
    assert largest_error(got, expected) <= tolerance_of(run, "uint8")


def test_mean_and_std_come_from_the_spec(run):
    image = random_image((64, 64, 3), "float64")
    spec = ScoringSpec(input_size=64, mean=(0.0, 0.5, -1.0), std=(1.0, 0.25, 2.0))
    expected = ((image - [0, 0.5, -1]) / [1, 0.25, 2]).transpose(2, 0, 1)[None]
    assert largest_error(run(image[None], spec), expected) <= tolerance_of(run, "float64")


def check_rounded(got: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    """`got` is `exact` rounded to `dtype`."""
    assert got.dtype == dtype
    if dtype == torch.bfloat16 and interpreted():
        # Triton's interpreter cuts off instead.
        exact = (exact.contiguous().view(torch.int32) & -65536).view(torch.float32)
    assert torch.equal(got, exact.to(dtype))


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_bfloat16_is_the_float32_result_rounded(impl, run, colour):
    image = random_image((1, 75, 58, 3) if colour else (1, 75, 58), "uint16")
    got = run(image, SPEC, dtype=torch.bfloat16)
    assert got.is_contiguous()
    if impl == "triton":
        check_rounded(got, run(image, SPEC), torch.bfloat16)
    else:
        assert got.dtype == torch.bfloat16
        assert torch.equal(got, run(image, SPEC).to(torch.bfloat16))


def test_float16_is_the_float32_result_rounded(impl, run):
    image = random_image((1, 75, 58, 3), "uint16")
    if impl == "native":
        with pytest.raises(BackendUnavailable, match=r"^impl 'native' of preprocess: it writes fl"):
            run(image, SPEC, dtype=torch.float16)
        default = preprocess(image, SPEC, dtype=torch.float16)
        assert torch.equal(default, preprocess(image, SPEC, impl="reference").half())
        return
    got = run(image, SPEC, dtype=torch.float16)
    assert got.is_contiguous()
    assert got.dtype == torch.float16
    assert torch.equal(got, run(image, SPEC).half())


@slow_interpreted
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_of_a_channels_last_tensor(dtype):
    from scrd_fast.kernels.preprocess import preprocess_into

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(random_image((2, 40, 90, 3), "uint8")).to(device)
    turned = images.permute(0, 2, 1, 3)
    out = torch.full((5, 3, 64, 64), 7.0, dtype=dtype, device=device)
    out = out.contiguous(memory_format=torch.channels_last)
    preprocess_into(images, out[1:3], SPEC.mean, SPEC.std, 255.0)
    preprocess_into(turned[:1], out[4:], SPEC.mean, SPEC.std, 255.0, traceable=False)
    check_rounded(out[1:3], preprocess(images, SPEC, impl="triton"), dtype)
    check_rounded(out[4:], preprocess(turned[:1].contiguous(), SPEC, impl="triton"), dtype)
    assert bool((out[[0, 3]] == 7).all())


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_constant_images_stay_constant(level):
    pixels = to_pixels(np.full((1, 37, 90), level, np.uint8), SPEC)
    assert pixels.unique().tolist() == [float(np.float32(level) / np.float32(255))]


def test_a_list_of_images_of_different_sizes_and_kinds(run):
    kinds = [("uint8", True), ("uint16", False), ("float32", True), ("float64", False)]
    images = [random_image((20 + 13 * i, 90 - 7 * i, *([3] if colour else [])), dtype, i)
              for i, (dtype, colour) in enumerate(kinds)]
    expected = np.stack([by_opencv(image, FULL_SCALE[dtype])
                         for image, (dtype, _) in zip(images, kinds, strict=True)])
    tolerance = max(tolerance_of(run, dtype) for dtype, _ in kinds)
    for batch in (images, tuple(images), [torch.from_numpy(image) for image in images]):
        assert largest_error(run(batch, SPEC), expected) <= tolerance


@slow_interpreted
@pytest.mark.parametrize("dtype", FULL_SCALE)
def test_arrays_tensors_and_lists_give_the_same_bits(run, dtype):
    images = np.stack([random_image((41, 77, 3), dtype, seed) for seed in range(3)])
    expected = run(images, SPEC)
    assert torch.equal(run(torch.from_numpy(images), SPEC), expected)
    assert torch.equal(run(list(images), SPEC), expected)
    for i in range(3):
        assert torch.equal(run(images[i : i + 1], SPEC), expected[i : i + 1])


LAYOUTS = ["fortran", "reversed", "every second", "misaligned", "read-only", "big-endian"]


@pytest.mark.parametrize("dtype", FULL_SCALE)
@each_impl(argument="layout", reference=LAYOUTS, native=LAYOUTS, triton=[])
# Stretched, shrunk by more than 2 and by more than 12 along a row.
@pytest.mark.parametrize("shape", [(33, 51, 3), (33, 151), (5, 801, 3)], ids=str)
def test_arrays_in_any_layout(run, shape, layout, dtype):
    images = random_image((2, *shape), dtype)
    other = in_layout(images, layout)
    before = other.copy()
    assert torch.equal(run(other, SPEC), run(images, SPEC))
    assert np.array_equal(other, before)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_an_axis_that_repeats_one_value(run, axis):
    images = random_image((2, 40, 50, 3), "float32")
    repeated = np.broadcast_to(images.take([0], axis), images.shape)
    assert torch.equal(run(repeated, SPEC), run(repeated.copy(), SPEC))


def test_tensors_in_any_layout(run):
    images = torch.from_numpy(random_image((2, 33, 51, 3), "uint8"))
    expected = run(images, SPEC)
    channels_first = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not channels_first.is_contiguous()
    assert torch.equal(run(channels_first, SPEC), expected)


def test_negated_views(run):
    """Imaginary parts of a conjugate: PyTorch notes the sign, the memory holds the other one."""
    images = torch.from_numpy(random_image((2, 33, 51, 3), "float32"))
    negated = torch.complex(torch.zeros_like(images), -images).conj().imag
    assert negated.is_neg()
    assert torch.equal(run(negated, SPEC), run(images, SPEC))
    negated = torch._neg_view(-images)
    assert negated.is_neg()
    assert negated.is_contiguous()
    assert torch.equal(run(negated, SPEC), run(images, SPEC))


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FULL_SCALE)
@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
def test_strides_on_the_gpu(colour, dtype):
    """Moving a tensor to the GPU closes its gaps, so they are made there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (2, 33, 51, 3) if colour else (2, 33, 51)
    images = torch.from_numpy(random_image(shape, dtype)).to(device)
    gaps = images.new_empty((2, 33, 102, *shape[3:]))[:, :, ::2]
    offset = images.new_empty(images.numel() + 1)[1:].view(shape)
    turned = images.new_empty((2, 51, 33, *shape[3:])).transpose(1, 2)
    expected = preprocess(images, SPEC, impl="triton")
    for other in (gaps, offset, turned):
        assert torch.equal(preprocess(other.copy_(images), SPEC, impl="triton"), expected)
    repeated = preprocess(images[:1].expand(3, *shape[1:]), SPEC, impl="triton")
    assert torch.equal(repeated, expected[:1].expand(3, -1, -1, -1))


@pytest.mark.parametrize("layout", ["reversed", "misaligned", "read-only"])
def test_large_arrays_are_read_where_they_lie(layout):
    images = in_layout(random_image((1, 600, 700, 3), "float32"), layout)
    tracemalloc.start()
    preprocess(images, SPEC, impl="native")
    peak = tracemalloc.get_traced_memory()[1]  # NumPy reports its memory there
    tracemalloc.stop()
    assert peak < images.nbytes / 10


def test_any_number_of_threads_gives_the_same_bits():
    images = random_image((3, 90, 80, 3), "uint8")
    before = _native.threads()
    results = []
    for threads in (1, 2, 5):
        _native.set_threads(threads)
        results.append(preprocess(images, SPEC, impl="native"))
    _native.set_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_which_implementation_runs():
    images = random_image((1, 70, 80), "float32")
    tensor = torch.from_numpy(images).requires_grad_()
    assert preprocess(tensor, SPEC).requires_grad
    for batch in (tensor, [tensor[0]], torch.zeros(1, 8, 8, device="meta")):
        with pytest.raises(BackendUnavailable, match="impl 'native' of preprocess"):
            preprocess(batch, SPEC, impl="native")
    assert torch.equal(preprocess(images, SPEC), preprocess(images, SPEC, impl="native"))
    with pytest.raises(InputError, match=r"^impl: expected"):
        preprocess(images, SPEC, impl="fast")
    with pytest.raises(InputError, match=r"^dtype: expected one of \['torch\.float32',"):
        preprocess(images, SPEC, dtype=torch.float64)


@pytest.mark.gpu
def test_what_runs_on_the_gpu():
    images = random_image((2, 70, 80), "float32")
    tensors = [torch.from_numpy(image) for image in images]
    for batch in (images, [images[0]], [tensors[0], images[1]]):
        with pytest.raises(BackendUnavailable, match=r"^impl 'triton' of preprocess: expected ten"):
            preprocess(batch, SPEC, impl="triton")
    with pytest.raises(BackendUnavailable, match=r"^impl 'triton' of preprocess: it has no grad"):
        on_gpu(torch.from_numpy(images).requires_grad_(), SPEC, impl="triton")
    if torch.cuda.is_available():
        with pytest.raises(BackendUnavailable, match="got one on cpu"):
            preprocess(tensors, SPEC, impl="triton")
        moved = torch.from_numpy(images).cuda()
        default = preprocess(moved, SPEC)
        assert default.is_cuda
        assert torch.equal(default, preprocess(moved, SPEC, impl="triton"))


def test_the_dtype_decides_not_the_values():
    dark = np.ones((1, 64, 64, 3), np.uint8)
    assert to_pixels(dark, SPEC).unique().tolist() == [float(np.float32(1) / np.float32(255))]
    dark16 = np.full((1, 64, 64), 255, np.uint16)
    assert to_pixels(dark16, SPEC).unique().tolist() == [
        float(np.float32(255) / np.float32(65535))]


def test_scorers_take_what_noise_made_of_images():
    """A build judges itself on normal images with unclipped noise, below the public checks."""
    noisy = random_image((1, 40, 40, 3), "float32") * 2 - 0.5
    pixels = checked_pixels(check_images(noisy, wait=False), SPEC)
    assert pixels.min() < -0.3
    assert pixels.max() > 1.3


def test_an_input_is_left_as_it_was(run):
    images = random_image((2, 64, 64), "float32")
    before = images.copy()
    run(images, SPEC).add_(1)
    assert np.array_equal(images, before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FULL_SCALE)
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 31, 47, 3), (2, 200, 131, 3)])
def test_the_gpu_kernel_is_the_reference(dtype, shape):
    """Where OpenCV is not installed nothing else holds it to numbers."""
    images = torch.from_numpy(random_image(shape, dtype))
    ours = where_it_runs(preprocess)(images, SPEC, impl="triton")
    expected = preprocess(images, SPEC, impl="reference")
    assert float((ours - expected).abs().max()) <= allowed("preprocess", dtype, "triton")
