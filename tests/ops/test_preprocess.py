"""ops.preprocess against OpenCV's bilinear resize of float64 images."""

import cv2
import numpy as np
import pytest
import torch

from scrd_fast.errors import InputError
from scrd_fast.ops.preprocess import preprocess, to_pixels
from scrd_fast.spec import IMAGENET_MEAN, IMAGENET_STD, ScoringSpec
from tests.tolerances import allowed

SPEC = ScoringSpec(input_size=64)
FULL_SCALE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0, "float64": 1.0}
SHAPES = [(64, 64), (31, 47), (97, 131), (13, 211), (64, 29), (1, 1), (1, 9), (5, 1), (2, 2)]


def random_image(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("uint"):
        return rng.integers(0, int(FULL_SCALE[dtype]) + 1, shape).astype(dtype)
    return rng.random(shape).astype(dtype)


def by_opencv(image: np.ndarray, full_scale: float, size: int = 64) -> np.ndarray:
    """(3, S, S) float64: divide, resize in float64, three channels, mean and std."""
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
def test_every_size_and_dtype(shape, colour, dtype):
    image = random_image((*shape, 3) if colour else shape, dtype)
    got = preprocess(image[None], SPEC)
    expected = by_opencv(image, FULL_SCALE[dtype])[None]
    assert largest_error(got, expected) <= allowed("preprocess", dtype)


@pytest.mark.parametrize("shape", [(2, 64, 64, 3), (2, 31, 47, 3), (2, 64, 64), (2, 31, 47)])
def test_the_result_is_channels_first_contiguous(shape):
    assert preprocess(random_image(shape, "uint8"), SPEC).is_contiguous()


@pytest.mark.parametrize("size", [32, 96, 256])
def test_other_input_sizes(size):
    image = random_image((75, 58, 3), "uint8")
    got = preprocess(image[None], ScoringSpec(input_size=size, blur_sigma=4))
    expected = by_opencv(image, 255.0, size)[None]
    assert largest_error(got, expected) <= allowed("preprocess", "uint8")


def test_mean_and_std_come_from_the_spec():
    image = random_image((64, 64, 3), "float64")
    spec = ScoringSpec(input_size=64, mean=(0.0, 0.5, -1.0), std=(1.0, 0.25, 2.0))
    expected = ((image - [0, 0.5, -1]) / [1, 0.25, 2]).transpose(2, 0, 1)[None]
    assert largest_error(preprocess(image[None], spec), expected) <= allowed(
        "preprocess", "float64")


@pytest.mark.parametrize("level", [0, 1, 128, 254, 255])
def test_constant_images_stay_constant(level):
    pixels = to_pixels(np.full((1, 37, 90), level, np.uint8), SPEC)
    assert pixels.unique().tolist() == [float(np.float32(level) / np.float32(255))]


def test_a_list_of_images_of_different_sizes_and_kinds():
    kinds = [("uint8", True), ("uint16", False), ("float32", True), ("float64", False)]
    images = [random_image((20 + 13 * i, 90 - 7 * i, *([3] if colour else [])), dtype, i)
              for i, (dtype, colour) in enumerate(kinds)]
    expected = np.stack([by_opencv(image, FULL_SCALE[dtype])
                         for image, (dtype, _) in zip(images, kinds, strict=True)])
    tolerance = max(allowed("preprocess", dtype) for dtype, _ in kinds)
    for batch in (images, tuple(images), [torch.from_numpy(image) for image in images]):
        assert largest_error(preprocess(batch, SPEC), expected) <= tolerance


@pytest.mark.parametrize("dtype", FULL_SCALE)
def test_arrays_tensors_and_lists_give_the_same_bits(dtype):
    images = np.stack([random_image((41, 77, 3), dtype, seed) for seed in range(3)])
    expected = preprocess(images, SPEC)
    assert torch.equal(preprocess(torch.from_numpy(images), SPEC), expected)
    assert torch.equal(preprocess(list(images), SPEC), expected)
    for i in range(3):
        assert torch.equal(preprocess(images[i : i + 1], SPEC), expected[i : i + 1])


@pytest.mark.parametrize("dtype", FULL_SCALE)
@pytest.mark.parametrize("layout", ["fortran", "reversed", "every second", "read-only",
                                    "big-endian"])
def test_arrays_in_any_layout(layout, dtype):
    images = random_image((2, 33, 51, 3), dtype)
    other = images
    if layout == "fortran":
        other = np.asfortranarray(images)
    elif layout == "reversed":
        other = np.ascontiguousarray(images[:, ::-1, :, ::-1])[:, ::-1, :, ::-1]
    elif layout == "every second":
        other = np.repeat(images, 2, axis=2)[:, :, ::2]
    elif layout == "read-only":
        other = images.copy()
        other.setflags(write=False)
    else:
        other = images.astype(images.dtype.newbyteorder(">"))
    before = other.copy()
    assert torch.equal(preprocess(other, SPEC), preprocess(images, SPEC))
    assert np.array_equal(other, before)


def test_tensors_in_any_layout():
    images = torch.from_numpy(random_image((2, 33, 51, 3), "uint8"))
    expected = preprocess(images, SPEC)
    channels_first = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not channels_first.is_contiguous()
    assert torch.equal(preprocess(channels_first, SPEC), expected)


def test_the_dtype_decides_not_the_values():
    bright = random_image((1, 40, 40, 3), "float32") * 255
    assert np.array_equal(to_pixels(bright, ScoringSpec(input_size=32)).numpy(),
                          to_pixels(bright.astype(np.float64), ScoringSpec(input_size=32)).numpy())
    whole = random_image((1, 64, 64, 3), "float32") * 255
    assert np.array_equal(to_pixels(whole, SPEC).numpy(), whole.transpose(0, 3, 1, 2))
    dark = np.ones((1, 64, 64, 3), np.uint8)
    assert to_pixels(dark, SPEC).unique().tolist() == [float(np.float32(1) / np.float32(255))]
    dark16 = np.full((1, 64, 64), 255, np.uint16)
    assert to_pixels(dark16, SPEC).unique().tolist() == [
        float(np.float32(255) / np.float32(65535))]


def test_an_input_is_left_as_it_was():
    images = random_image((2, 64, 64), "float32")
    before = images.copy()
    preprocess(images, SPEC).add_(1)
    assert np.array_equal(images, before)


GOOD = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 8, 8), np.int32), "images: expected dtype uint8, uint16 or float"),
        (np.zeros((2, 8, 8), bool), "images: expected dtype uint8, uint16 or float"),
        (np.zeros((2, 8, 8), np.float16), "images: expected dtype uint8, uint16 or float"),
        (np.zeros((2, 8, 8), object), "images: expected dtype uint8, uint16 or float"),
        (torch.zeros(2, 8, 8, dtype=torch.int64), "images: expected dtype uint8, uint16 or float"),
        (torch.zeros(2, 8, 8, dtype=torch.bfloat16), "images: expected dtype uint8, uint16"),
        (np.zeros((2, 8, 8, 4), np.uint8), "images: expected uint8, uint16 or float (N, H, W)"),
        (np.zeros((2, 3, 8, 8), np.uint8), "images: expected uint8, uint16 or float (N, H, W)"),
        (np.zeros((8, 8), np.uint8), "images: expected uint8, uint16 or float (N, H, W)"),
        (np.zeros((1, 1, 8, 8, 3), np.uint8), "images: expected uint8, uint16 or float (N, H, W)"),
        (np.zeros((0, 8, 8), np.uint8), "images: expected at least one image, got an empty"),
        (np.zeros((2, 0, 8, 3), np.float32), "images: expected images of at least one pixel"),
        ([], "images: expected at least one image, got an empty list"),
        ("folder", "images: expected uint8, uint16 or float"),
        (None, "images: expected uint8, uint16 or float"),
        (3, "images: expected uint8, uint16 or float"),
        ([GOOD, np.zeros((8, 8), np.int16)], "images[1]: expected dtype uint8, uint16 or float"),
        ([GOOD, GOOD, "x.png"], "images[2]: expected an array or a tensor, got str"),
        ([GOOD, np.zeros((8, 8, 4), np.uint8)], "images[1]: expected (H, W) or (H, W, 3), got"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], "images[0]: expected (H, W) or (H, W, 3), got"),
        ([np.zeros(8, np.uint8), GOOD], "images[0]: expected (H, W) or (H, W, 3), got (8,)"),
        ([GOOD, np.zeros((0, 8), np.uint8)], "images[1]: expected"),
    ],
)
def test_images_that_do_not_fit(images, message):
    with pytest.raises(InputError) as caught:
        preprocess(images, SPEC)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_that_are_not_finite(dtype, bad):
    images = random_image((3, 9, 7, 3), dtype)
    images[1, 8, 0, 2] = bad
    with pytest.raises(InputError, match=r"^images: expected finite values, got -?(nan|inf) at "
                                         r"index \(1, 8, 0, 2\)$"):
        preprocess(images, SPEC)
    with pytest.raises(InputError, match=r"^images\[1\]: expected finite values, got -?(nan|inf)"):
        preprocess(list(images), SPEC)


def test_float64_values_beyond_float32():
    """The network works in float32: what becomes infinite there is as bad as infinity."""
    images = random_image((2, 9, 7), "float64")
    images[1, 2, 3] = 1e300
    with pytest.raises(InputError, match=r"^images: expected finite values"):
        preprocess(images, SPEC)
