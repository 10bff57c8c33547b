"""ops.add_noise: simplex noise inside the box, nothing outside it."""

import re

import numpy as np
import pytest
import torch

from scrd_fast import _native
from scrd_fast.errors import BackendUnavailable, InputError, NotFiniteError
from scrd_fast.ops.add_noise import add_noise as ops_add_noise
from scrd_fast.reference.simplex_noise import octave_field
from tests.ops.each_impl import each_impl, slow, where_it_runs
from tests.support.tolerances import allowed

add_noise = where_it_runs(ops_add_noise)

# Odd sides, one pixel, a whole image, a box that touches the far corner.
BOXES = np.array([[3, 5, 7, 11], [0, 0, 1, 1], [0, 0, 23, 31], [10, 20, 13, 11]])
SEEDS = np.array([5, -1, 2**62 + 3, 5])
STRENGTHS = np.array([0.2, 3.0, 0.05, 1.0])


def images(dtype: torch.dtype = torch.float64, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, channels, 23, 31, generator=generator, dtype=torch.float64).to(dtype)


def inside(box: np.ndarray) -> tuple[slice, slice, slice]:
    top, left, height, width = box
    return slice(None), slice(top, top + height), slice(left, left + width)


def check_noise(noisy: torch.Tensor, clean: torch.Tensor, law: tuple, tolerance: float) -> None:
    """Noise of BOXES, SEEDS and STRENGTHS inside the boxes, `tolerance` per unit of strength."""
    for i, box in enumerate(BOXES):
        height, width = (int(v) for v in box[2:])
        noise = octave_field(clean.shape[1], height, width, SEEDS[i : i + 1], *law)[0]
        expected = clean[i][inside(box)].double().numpy() + STRENGTHS[i] * noise
        error = np.abs(noisy[i][inside(box)].double().numpy() - expected).max()
        assert error <= tolerance * max(1, STRENGTHS[i])
        outside = torch.ones_like(noisy[i], dtype=torch.bool)
        outside[inside(box)] = False
        assert torch.equal(noisy[i][outside], clean[i][outside])
    assert float((noisy[3] - clean[3]).abs().max()) > 0.2


LAW = {"octaves": 4, "persistence": 0.7, "wavelength": 20.0}


FLOATS = [torch.float64, torch.float32]
CASES = {"native": [(torch.float32, channels) for channels in (1, 3, 5)],
         "reference": [(dtype, channels) for dtype in FLOATS for channels in (1, 3, 5)],
         "triton": [slow((torch.float32, 3)), (torch.float16, 1), slow((torch.bfloat16, 1))]}


@each_impl(**CASES, argument="case")
def test_noise_inside_the_box_and_nothing_outside(impl, case):
    dtype, channels = case
    clean = images(dtype, channels)
    before = clean.clone()
    noisy = add_noise(clean, BOXES, seeds=SEEDS, strength=STRENGTHS, **LAW, impl=impl)
    assert noisy.dtype == dtype
    assert torch.equal(clean, before)
    check_noise(noisy, clean, tuple(LAW.values()), allowed("add_noise", dtype, impl))


def test_the_defaults_are_the_published_law():
    noisy = add_noise(images(), BOXES, seeds=SEEDS, strength=0.2)
    noise = octave_field(3, 7, 11, SEEDS[:1], 6, 0.6, 32)[0]
    change = (noisy - images())[0][inside(BOXES[0])].numpy()
    assert np.abs(change - 0.2 * noise).max() <= allowed("add_noise", torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_which_implementation_runs(dtype):
    """Native where it can run, and never instead of a forced reference."""
    arguments = {"boxes": BOXES, "seeds": SEEDS, "strength": 1.0}
    default = add_noise(images(dtype), **arguments)
    assert default.dtype == dtype
    reference = add_noise(images(dtype), **arguments, impl="reference")
    if dtype == torch.float32:
        assert torch.equal(default, add_noise(images(dtype), **arguments, impl="native"))
        assert not torch.equal(default, reference)
        graph = add_noise(images(dtype).requires_grad_(), **arguments)
        assert torch.equal(graph.detach(), reference)
        graph.sum().backward()
    else:
        assert torch.equal(default, reference)
        with pytest.raises(BackendUnavailable, match="impl 'native' of add_noise: expected"):
            add_noise(images(dtype), **arguments, impl="native")


# Few points: a program of the interpreter takes 60 ms per octave.
SMALL = {"boxes": np.array([[3, 5, 7, 11], [0, 0, 1, 1], [5, 0, 11, 13], [10, 20, 13, 11]]),
         "octaves": 2}


@each_impl(reference=FLOATS, native=[torch.float32], triton=[slow(torch.float32)])
def test_an_image_does_not_depend_on_its_neighbours(impl, dtype):
    clean, boxes = images(dtype), SMALL["boxes"]
    together = add_noise(clean, seeds=SEEDS, strength=STRENGTHS, **SMALL, impl=impl)
    for chosen in ([0], [1], [2], [3], [3, 1], [2, 0, 3], [0, 0, 1, 2, 3]):
        some = add_noise(clean[chosen], boxes[chosen], seeds=SEEDS[chosen],
                         strength=STRENGTHS[chosen], octaves=2, impl=impl)
        assert torch.equal(some, together[chosen])


def test_native_noise_does_not_depend_on_the_number_of_threads(isa):
    """Boxes of several tasks each, and where in its image a box lies does not matter either."""
    black = torch.zeros(3, 3, 90, 80)
    boxes = np.array([[0, 0, 90, 80], [0, 0, 51, 67], [39, 13, 51, 67]])
    before = _native.threads()
    try:
        results = []
        for threads in (1, 2, 5):
            _native.set_threads(threads)
            results.append(add_noise(black, boxes, seeds=np.array([1, 2, 2]), strength=1.0))
    finally:
        _native.set_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    patches = [results[0][i][inside(boxes[i])] for i in (1, 2)]
    assert torch.equal(*patches)
    assert float(patches[0].abs().max()) > 0.3


def test_the_result_is_not_clipped():
    noisy = add_noise(torch.ones(1, 3, 40, 40), np.array([[0, 0, 40, 40]]), seeds=np.array([1]),
                      strength=5.0)
    assert float(noisy.max()) > 1
    assert float(noisy.min()) < 0


@each_impl(reference=FLOATS, native=[torch.float32], triton=[slow(torch.float32)])
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_non_contiguous_images(layout, impl, dtype):
    clean = images(dtype)
    if layout == "channels_last":
        other = clean.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        other = clean.repeat_interleave(2, dim=3)[..., ::2]
    else:
        clean = clean[:1].repeat(4, 1, 1, 1)
        other = clean[:1].expand(4, -1, -1, -1)
    assert not other.is_contiguous()
    law = SMALL | {"seeds": SEEDS, "strength": STRENGTHS, "impl": impl}
    assert torch.equal(add_noise(other, **law), add_noise(clean.contiguous(), **law))


@pytest.mark.gpu
def test_no_gradient_and_no_other_dtype_on_the_gpu():
    law = {"seeds": SEEDS, "strength": STRENGTHS, "impl": "triton"}
    for clean in (images(torch.float64), images(torch.float32).requires_grad_()):
        with pytest.raises(BackendUnavailable, match="impl 'triton' of add_noise: "):
            add_noise(clean, BOXES, **law)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_images_on_the_gpu_stay_there():
    clean = images(torch.float32).cuda()
    noisy = add_noise(clean, BOXES, seeds=SEEDS, strength=STRENGTHS)
    assert noisy.is_cuda
    assert torch.equal(noisy, ops_add_noise(clean, BOXES, seeds=SEEDS, strength=STRENGTHS,
                                            impl="triton"))


@pytest.mark.parametrize(
    "box",
    [[-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 0, 5], [0, 0, 5, -1], [19, 0, 5, 5], [0, 27, 5, 5],
     [2**63 - 1, 0, 1, 1], [0, 1, 1, 2**63 - 1]],
)
def test_boxes_outside_the_image(box):
    boxes = BOXES.copy()
    boxes[2] = box
    with pytest.raises(InputError, match=r"^boxes: expected boxes inside 23 x 31, got \[\["):
        add_noise(images(), boxes, seeds=SEEDS, strength=0.2)
    message = f"boxes: expected boxes inside 23 x 31, got {str(box)[1:-1]} for image 2"
    array = images(torch.float32).numpy()
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        _native.add_noise(array, boxes, SEEDS, STRENGTHS, 2, 0.5, 32.0)
    assert np.array_equal(array, images(torch.float32).numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.ones(0, 3, 23, 31)}, "images: expected float (N, C, H, W), got"),
        ({"images": torch.ones(4, 23, 31)}, "images: expected float (N, C, H, W), got"),
        ({"images": torch.ones(4, 3, 23, 31, dtype=torch.uint8)},
         "images: expected float (N, C, H, W), got torch.uint8"),
        ({"images": images().to_sparse()}, "images: expected a dense tensor with values, got"),
        ({"images": images().numpy()}, "images: expected a tensor, got ndarray"),
        ({"boxes": [[0, 0, 3, 3], [1, 2]]}, "boxes: expected numbers, got list"),
        ({"boxes": "everywhere"}, "boxes: expected numbers, got <U10"),
        ({"seeds": None}, "seeds: expected numbers, got object"),
        ({"strength": "strong"}, "strength: expected numbers, got <U6"),
        ({"persistence": "0.5"}, "persistence: expected a finite number from 0, got 0.5"),
        ({"wavelength": None}, "wavelength: expected a positive number of pixels, got None"),
        ({"boxes": BOXES[:3]}, "boxes: expected (4, 4), got (3, 4)"),
        ({"boxes": BOXES[:, :3]}, "boxes: expected (4, 4), got (4, 3)"),
        ({"boxes": BOXES + 0.5}, "boxes: expected"),
        ({"seeds": SEEDS[:3]}, "seeds: expected (4,), got (3,)"),
        ({"seeds": np.int64(3)}, "seeds: expected (4,), got ()"),
        ({"seeds": SEEDS / 2}, "seeds: expected"),
        ({"strength": np.ones(3)}, "strength: expected"),
        ({"strength": float("nan")}, "strength: expected"),
        ({"octaves": 0}, "octaves: expected"),
        ({"wavelength": 0}, "wavelength: expected"),
        ({"wavelength": 1e-12}, "wavelength: expected a grid of at most 2^30 wavelengths"),
        ({"impl": "fast"}, "impl: expected"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"images": images(), "boxes": BOXES, "seeds": SEEDS, "strength": 0.2} | change
    with pytest.raises(InputError) as caught:
        add_noise(arguments.pop("images"), arguments.pop("boxes"), **arguments)
    assert str(caught.value).startswith(message)


def transposed(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(3, 1, 0, 2)).transpose(2, 1, 3, 0)


@pytest.mark.parametrize("layout", [
    transposed, lambda a: np.flip(a.copy(), (1, 3)), lambda a: np.repeat(a, 3, axis=2)[:, :, ::3]])
def test_native_writes_through_any_strides(isa, layout):
    clean = images(torch.float32).numpy()
    array = layout(clean)
    expected = np.ascontiguousarray(array)
    _native.add_noise(expected, BOXES, SEEDS, STRENGTHS, 2, 0.5, 32.0)
    _native.add_noise(array, BOXES, SEEDS, STRENGTHS, 2, 0.5, 32.0)
    assert np.array_equal(array, expected)
    assert not np.array_equal(array, layout(clean))


def read_only() -> np.ndarray:
    array = images(torch.float32).numpy()
    array.setflags(write=False)
    return array


FIELDS = np.zeros((4, 3, 23, 31), dtype=[("a", "f4"), ("b", "u1")], order="C")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": read_only()}, InputError, "images: expected memory that can be written, got"),
        ({"images": np.zeros((4, 3, 23, 31))}, InputError,
         "images: expected float32 (N, C, H, W), got float64 (4, 3, 23, 31)"),
        ({"images": np.zeros((4, 23, 31), np.float32)}, InputError,
         "images: expected float32 (N, C, H, W), got float32 (4, 23, 31)"),
        ({"images": FIELDS["a"]}, InputError, "images: expected memory aligned to its dtype, got"),
        ({"images": np.lib.stride_tricks.as_strided(
            np.zeros(900, np.float32), (4, 3, 23, 31), (0, 0, 124, 4))}, InputError,
         "images: expected elements that do not share memory, got"),
        ({"boxes": BOXES[:3]}, InputError, "boxes: expected int64 (4, 4), got int64 (3, 4)"),
        ({"boxes": BOXES.astype(np.int32)}, InputError, "boxes: expected int64 (4, 4), got int32"),
        ({"seeds": SEEDS[:3]}, InputError, "seeds: expected int64 (4,), got int64 (3,)"),
        ({"strengths": np.ones(5)}, InputError, "strength: expected float64 (4,), got float64"),
        ({"strengths": np.array([1, 2, np.inf, 3])}, NotFiniteError,
         "strength: expected finite numbers, got one that is not, for image 2"),
        ({"octaves": -1}, InputError, "octaves: expected a positive integer, got -1"),
    ],
)
def test_native_checks_its_arguments(change, error, message):
    arguments = {"images": images(torch.float32).numpy(), "boxes": BOXES, "seeds": SEEDS,
                 "strengths": STRENGTHS, "octaves": 2, "persistence": 0.5, "wavelength": 32.0}
    with pytest.raises(error, match="^" + re.escape(message)):
        _native.add_noise(**(arguments | change))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8)])
def test_native_without_pixels(shape):
    boxes = np.array([[0, 0, 8, 8]] * shape[0], dtype=np.int64).reshape(shape[0], 4)
    _native.add_noise(np.zeros(shape, np.float32), boxes, np.zeros(shape[0], np.int64),
                      np.ones(shape[0]), 2, 0.5, 32.0)
