"""What preprocess refuses: images, specifications and values that do not fit."""

import numpy as np
import pytest
import torch

from scrd_fast import _native
from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.ops.image_arrays import check_range
from scrd_fast.ops.preprocess import preprocess, to_pixels
from tests.ops.preprocessing import SPEC, in_layout, random_image


def test_images_on_different_devices():
    image, elsewhere = torch.zeros(8, 8), torch.zeros(8, 8, device="meta")
    for impl in (None, "native", "triton", "reference"):
        with pytest.raises(InputError) as caught:
            preprocess([image, image, elsewhere], SPEC, impl=impl)
        assert str(caught.value) == (
            "images[2]: expected a tensor on cpu as images[0], got one on meta")
        with pytest.raises(InputError) as caught:
            preprocess([elsewhere, image.numpy()], SPEC, impl=impl)
        assert str(caught.value) == (
            "images[1]: expected a tensor on meta as images[0], got an array")


@pytest.mark.parametrize(
    ("size", "std", "message"),
    [(0, 1, "size: expected 1 to 65536, got 0"), (65537, 1, "size: expected 1 to 65536, got 65537"),
     (32, 0, "std: expected three numbers above 0"), (32, np.nan, "std: expected")])
def test_what_a_spec_refuses_is_refused_below_it_too(size, std, message):
    with pytest.raises(InputError) as caught:
        _native.preprocess(np.zeros((1, 8, 8), np.uint8), size, (0, 0, 0), (1, std, 1), False)
    assert str(caught.value).startswith(message)


def test_a_batch_too_large_for_any_memory():
    images = np.broadcast_to(np.zeros((8, 8), np.uint8), (2**50, 8, 8))
    with pytest.raises(MemoryError):
        preprocess(images, SPEC, impl="native")


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_outside_their_range(impl, dtype):
    """Scales of integers sneak in as floats; what resampling leaves is let through."""
    image = random_image((1, 40, 40, 3), dtype)
    preprocess(image * (1 + 1e-4), SPEC, impl=impl)
    message = r"^images: expected .*float\d\d in \[0, 1\], got values from .* to 2.*; pass int"
    with pytest.raises(InputError, match=message):
        preprocess(image * 255, SPEC, impl=impl)
    with pytest.raises(InputError, match=r"^images\[1\]: expected .* in \[0, 1\], got values from"):
        preprocess([image[0], image[0] - 0.5], SPEC, impl=impl)
    batch = np.concatenate([image, image, image * 200])
    with pytest.raises(InputError, match=r"^images\[2\]: expected .* in \[0, 1\], got values from"):
        preprocess(batch, SPEC, impl=impl)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_range_ends_at_the_same_values_in_any_layout(dtype):
    """Contiguous images are looked through by C++, others by NumPy."""
    ends = np.float32([-1e-3, 0, 1, 1 + 1e-3])
    values = [np.nextafter(ends, np.float32(-9)), ends, np.nextafter(ends, np.float32(9))]
    verdicts: list[bool] = []
    for value in np.concatenate(values).astype(dtype):
        contiguous = np.full((2, 5, 7), 0.5, dtype)
        contiguous[1, 4, 6] = value
        seen = []
        for images in (contiguous, np.asfortranarray(contiguous)):
            try:
                check_range(images, "images")
                seen.append(True)
            except InputError:
                seen.append(False)
        assert seen[0] == seen[1] == (-1e-3 <= float(value) <= 1 + 1e-3), value
        verdicts.append(seen[0])
    assert 0 < sum(verdicts) < len(verdicts)


def test_memory_that_holds_no_image():
    flipped = random_image((1, 40, 1, 3), "float32")[:, :, ::-1]
    assert torch.equal(to_pixels(flipped, SPEC), to_pixels(flipped.copy(), SPEC))
    whole = torch.from_numpy(random_image((1, 40, 40), "float32"))
    masked = np.ma.masked_less(whole.numpy(), 0.5)
    for impl in (None, "reference"):
        for wrong, what in ((whole.to_sparse(), "torch.sparse_coo"), (whole.to("meta"), "meta"),
                            (masked, "masked array")):
            with pytest.raises(InputError, match=f"^images: expected .*, got .*{what}"):
                preprocess(wrong, SPEC, impl=impl)


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
        (memoryview(GOOD), "images: expected uint8, uint16 or float"),
        ([GOOD, np.zeros((8, 8), np.int16)], "images[1]: expected dtype uint8, uint16 or float"),
        ([GOOD, GOOD, "x.png"], "images[2]: expected an array or a tensor, got str"),
        ([GOOD, np.zeros((8, 8, 4), np.uint8)], "images[1]: expected (H, W) or (H, W, 3), got"),
        ([np.zeros((1, 8, 8, 3), np.uint8)], "images[0]: expected (H, W) or (H, W, 3), got"),
        ([np.zeros(8, np.uint8), GOOD], "images[0]: expected (H, W) or (H, W, 3), got (8,)"),
        ([GOOD, np.zeros((0, 8), np.uint8)], "images[1]: expected"),
    ],
)
def test_images_that_do_not_fit(images, message, impl, run):
    if impl == "triton" and isinstance(images, np.ndarray) and images.dtype.hasobject:
        pytest.skip("there are no tensors of objects")
    with pytest.raises(InputError) as caught:
        run(images, SPEC)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("layout", ["read-only", "reversed", "fortran"])
def test_values_that_are_not_finite(run, layout, dtype, bad):
    images = random_image((3, 9, 57, 3), dtype)
    images[1, 8, 0, 2] = images[2, 0, 1, 1] = bad
    images = in_layout(images, layout)
    text = str(float(bad))
    with pytest.raises(NotFiniteError) as caught:
        run(images, SPEC)
    assert str(caught.value) == f"images: expected finite values, got {text} at index (1, 8, 0, 2)"
    with pytest.raises(NotFiniteError) as caught:
        run(list(images), SPEC)
    assert str(caught.value) == f"images[1]: expected finite values, got {text} at index (8, 0, 2)"


@pytest.mark.parametrize("where", [(0, 0), (0, 69), (171, 1000), (299, 1022), (299, 1021)])
def test_the_one_value_that_is_not_finite_is_found(run, where):
    """Anywhere in an image of several tasks, in whole vectors and in what is left of a row."""
    image = random_image((300, 1023), "float32")
    image[where] = np.inf
    with pytest.raises(NotFiniteError) as caught:
        run(image[None], SPEC)
    assert str(caught.value) == f"images: expected finite values, got inf at index {(0, *where)}"


def test_float64_values_beyond_float32(run):
    """The network works in float32: what becomes infinite there is as bad as infinity."""
    images = random_image((2, 9, 7), "float64")
    images[1, 2, 3] = 1e300
    with pytest.raises(NotFiniteError) as caught:
        run(images, SPEC)
    assert str(caught.value) == "images: expected finite values, got 1e+300 at index (1, 2, 3)"
