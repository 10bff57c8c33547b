"""ops.add_noise: simplex noise inside the box, nothing outside it."""

import numpy as np
import pytest
import torch

from scrd_fast.errors import InputError
from scrd_fast.ops.add_noise import add_noise
from scrd_fast.ops.simplex_noise import simplex_noise
from tests.tolerances import allowed

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


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_noise_inside_the_box_and_nothing_outside(dtype, channels):
    clean = images(dtype, channels)
    before = clean.clone()
    law = {"octaves": 4, "persistence": 0.7, "wavelength": 20.0}
    noisy = add_noise(clean, BOXES, seeds=SEEDS, strength=STRENGTHS, **law)
    assert noisy.dtype == dtype
    assert torch.equal(clean, before)
    for i, box in enumerate(BOXES):
        height, width = (int(v) for v in box[2:])
        noise = simplex_noise(channels, height, width, seeds=SEEDS[i : i + 1], **law)[0]
        expected = clean[i][inside(box)].double().numpy() + STRENGTHS[i] * noise
        error = np.abs(noisy[i][inside(box)].double().numpy() - expected).max()
        assert error <= allowed("add_noise", dtype)
        outside = torch.ones_like(noisy[i], dtype=torch.bool)
        outside[inside(box)] = False
        assert torch.equal(noisy[i][outside], clean[i][outside])
    assert float((noisy[3] - clean[3]).abs().max()) > 0.2


def test_the_defaults_are_the_published_law():
    noisy = add_noise(images(), BOXES, seeds=SEEDS, strength=0.2)
    noise = simplex_noise(3, 7, 11, seeds=[5], octaves=6, persistence=0.6, wavelength=32)[0]
    change = (noisy - images())[0][inside(BOXES[0])].numpy()
    assert np.abs(change - 0.2 * noise).max() <= allowed("add_noise", torch.float64)


def test_an_image_does_not_depend_on_its_neighbours():
    together = add_noise(images(), BOXES, seeds=SEEDS, strength=STRENGTHS)
    for chosen in ([0], [1], [2], [3], [3, 1], [2, 0, 3], [0, 0, 1, 2, 3]):
        some = add_noise(images()[chosen], BOXES[chosen], seeds=SEEDS[chosen],
                         strength=STRENGTHS[chosen])
        assert torch.equal(some, together[chosen])


def test_the_result_is_not_clipped():
    noisy = add_noise(torch.ones(1, 3, 40, 40), np.array([[0, 0, 40, 40]]), seeds=np.array([1]),
                      strength=5.0)
    assert float(noisy.max()) > 1
    assert float(noisy.min()) < 0


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_non_contiguous_images(layout):
    clean = images()
    if layout == "channels_last":
        other = clean.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        other = clean.repeat_interleave(2, dim=3)[..., ::2]
    else:
        clean = clean[:1].repeat(4, 1, 1, 1)
        other = clean[:1].expand(4, -1, -1, -1)
    assert not other.is_contiguous()
    expected = add_noise(clean.contiguous(), BOXES, seeds=SEEDS, strength=STRENGTHS)
    assert torch.equal(add_noise(other, BOXES, seeds=SEEDS, strength=STRENGTHS), expected)


@pytest.mark.parametrize(
    "box",
    [[-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 0, 5], [0, 0, 5, -1], [19, 0, 5, 5], [0, 27, 5, 5]],
)
def test_boxes_outside_the_image(box):
    boxes = BOXES.copy()
    boxes[2] = box
    with pytest.raises(InputError, match=r"^boxes: expected boxes inside 23 x 31, got \[\["):
        add_noise(images(), boxes, seeds=SEEDS, strength=0.2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.ones(4, 23, 31)}, "images: expected float (N, C, H, W), got"),
        ({"images": torch.ones(4, 3, 23, 31, dtype=torch.uint8)},
         "images: expected float (N, C, H, W), got torch.uint8"),
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
    ],
)
def test_bad_arguments(change, message):
    arguments = {"images": images(), "boxes": BOXES, "seeds": SEEDS, "strength": 0.2} | change
    with pytest.raises(InputError) as caught:
        add_noise(arguments.pop("images"), arguments.pop("boxes"), **arguments)
    assert str(caught.value).startswith(message)
