"""training.noise: the law of the patches, keyed by run seed, epoch and image."""

import numpy as np
import pytest
import torch

from scrd_fast.data.anomalies import draw_patches, synthesise
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import InputError
from scrd_fast.reference.simplex_noise import octave_field
from tests.support.tolerances import allowed


def draw(noise: NoiseConfig, side: int, count: int = 400, seed: int = 3, epoch: int = 0):
    return draw_patches(noise, side, seed, np.full(count, epoch), np.arange(count))


@pytest.mark.parametrize(
    ("side", "min_side", "max_share", "last"),
    [
        (256, 10, 0.125, 31),  # as published: sides in [10, 256 // 8)
        (128, 10, 0.125, 15),
        (64, 10, 0.125, 10),  # the smallest side wins where the share is below it
        (96, 1, 1.0, 95),
        (33, 5, 0.3, 8),
    ],
)
def test_sides_and_corners(side, min_side, max_share, last):
    noise = NoiseConfig(min_side=min_side, max_share=max_share)
    top, left, height, width = draw(noise, side, 3000).boxes.T
    for length, corner in ((height, top), (width, left)):
        assert (length.min(), length.max()) == (min_side, last)
        assert corner.min() == 1
        assert (corner + length).max() == side
    if last > min_side:
        assert (height != width).any()


def test_sides_and_corners_are_uniform():
    """Each of the 21 sides, and each of 16 bins of the free corner, is drawn as often."""
    boxes = draw(NoiseConfig(), 256, 4000).boxes
    for axis in (0, 1):
        corner, length = boxes[:, axis], boxes[:, axis + 2]
        share = (corner - 1 + 0.5) / (256 - length)  # of the allowed corners, in (0, 1)
        for counts in (np.bincount(length - 10, minlength=21), np.histogram(share, 16, (0, 1))[0]):
            expected = 4000 / len(counts)
            chi2 = ((counts - expected) ** 2 / expected).sum()
            # Mean and standard deviation of chi-square are n - 1 and sqrt(2 (n - 1)).
            assert chi2 < (len(counts) - 1) + 4 * np.sqrt(2 * (len(counts) - 1))


def test_strengths():
    assert (draw(NoiseConfig(strength=0.3), 64).strengths == 0.3).all()
    strengths = draw(NoiseConfig(strength=0.4, weakest=0.25), 64, 2000).strengths
    assert 0.1 <= strengths.min() < 0.11
    assert 0.39 < strengths.max() <= 0.4
    assert abs(strengths.mean() - 0.25) < 0.01


def test_textures():
    per_sample = draw(NoiseConfig(), 64).seeds
    assert len(set(per_sample.tolist())) == 400
    shared = draw(NoiseConfig(texture="shared"), 64)
    assert (shared.seeds == 3).all()
    # The boxes do not depend on the way the texture is chosen.
    assert np.array_equal(shared.boxes, draw(NoiseConfig(), 64).boxes)


def test_seed_epoch_and_index_all_matter():
    first = draw(NoiseConfig(), 256)
    for other in (draw(NoiseConfig(), 256, seed=4), draw(NoiseConfig(), 256, epoch=1)):
        assert (first.boxes != other.boxes).any(axis=1).mean() > 0.99
        assert (first.seeds != other.seeds).all()
    again = draw(NoiseConfig(), 256)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def pixels(count: int, side: int = 64) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("texture", ["per_sample", "shared"])
@pytest.mark.parametrize("channels", ["independent", "shared"])
def test_an_image_is_the_same_in_any_batch(texture, channels):
    noise = NoiseConfig(texture=texture, channels=channels, weakest=0.5)
    clean, index = pixels(6), np.array([4, 0, 9, 1, 77, 4])
    epochs = np.array([0, 0, 1, 1, 2, 0])
    together = synthesise(clean, noise, seed=5, epochs=epochs, indices=index).pixels
    for chosen in ([0], [3], [5, 1], [4, 3, 2, 1, 0]):
        some = synthesise(clean[chosen], noise, seed=5, epochs=epochs[chosen],
                          indices=index[chosen]).pixels
        assert torch.equal(some, together[chosen])


@pytest.mark.parametrize("channels", ["independent", "shared"])
def test_synthesise_adds_the_drawn_patches(channels):
    noise = NoiseConfig(channels=channels, weakest=0.5, octaves=3, wavelength=16.0)
    clean, epochs, index = pixels(4), np.array([0, 1, 2, 3]), np.arange(4)
    before = clean.clone()
    noisy = synthesise(clean, noise, seed=7, epochs=epochs, indices=index).pixels
    assert torch.equal(clean, before)
    patches = draw_patches(noise, 64, 7, epochs, index)
    for i, (top, left, height, width) in enumerate(patches.boxes):
        depth = 3 if channels == "independent" else 1
        field = octave_field(depth, int(height), int(width), patches.seeds[i : i + 1],
                             octaves=3, persistence=0.6, wavelength=16.0)[0]
        expected = clean[i].double().numpy()
        expected[:, top : top + height, left : left + width] += patches.strengths[i] * field
        error = np.abs(noisy[i].double().numpy() - expected).max()
        assert error <= allowed("add_noise", torch.float32, "native")
        outside = torch.ones(3, 64, 64, dtype=torch.bool)
        outside[:, top : top + height, left : left + width] = False
        assert torch.equal(noisy[i][outside], clean[i][outside])
        assert float((noisy[i] - clean[i]).abs().max()) > 0.01


def test_shared_channels_keep_grey_images_grey():
    grey = pixels(3)[:, :1].expand(-1, 3, -1, -1)
    ids = {"seed": 1, "epochs": np.zeros(3, int), "indices": np.arange(3)}
    noisy = synthesise(grey, NoiseConfig(channels="shared"), **ids).pixels
    assert torch.equal(noisy[:, 0], noisy[:, 1])
    assert torch.equal(noisy[:, 0], noisy[:, 2])
    assert not torch.equal(noisy, grey)
    tinted = synthesise(grey, NoiseConfig(channels="independent"), **ids).pixels
    assert float((tinted[:, 0] - tinted[:, 2]).abs().max()) > 1e-3


def test_a_shared_texture_starts_alike_in_every_patch():
    black = torch.zeros(5, 3, 64, 64)
    noise = NoiseConfig(texture="shared")
    ids = {"epochs": np.zeros(5, int), "indices": np.arange(5)}
    noisy = synthesise(black, noise, seed=11, **ids).pixels
    boxes = draw_patches(noise, 64, 11, **ids).boxes
    corners = [n[:, t : t + 10, left : left + 10]
               for n, (t, left, _, _) in zip(noisy, boxes, strict=True)]
    assert all(torch.equal(c, corners[0]) for c in corners)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("strength", v) for v in (0, -0.2, float("nan"))],
        *[("min_side", v) for v in (0, -3)],
        *[("max_share", v) for v in (0, 1.01, -0.5, float("nan"))],
        ("octaves", 0),
        *[("persistence", v) for v in (-0.5, float("nan"))],
        *[("wavelength", v) for v in (0, -32.0, float("nan"))],
        *[("texture", v) for v in ("sample", None)],
        *[("channels", v) for v in ("rgb", None)],
        *[("weakest", v) for v in (0, 1.5, -1, float("nan"))],
    ],
)
def test_configurations_that_are_refused(field, value):
    with pytest.raises(InputError, match=rf"^noise\.{field}: expected .*, got "):
        NoiseConfig(**{field: value})


def test_images_too_small_for_a_patch():
    draw(NoiseConfig(min_side=31), 32, 50)
    with pytest.raises(InputError, match=r"^noise\.min_side: expected a patch smaller than the "
                                         r"32 px image, got 32$"):
        draw(NoiseConfig(min_side=32), 32)
