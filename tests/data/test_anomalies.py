"""data.anomalies: every kind by its law, the same for any cut of the images into batches."""

import numpy as np
import pytest
import torch

from scrd_fast.data.anomalies import (
    Donors,
    Patches,
    Synthesised,
    add_patches,
    draw_patches,
    synthesise,
)
from scrd_fast.data.anomalies.blob import blob, draw_blob
from scrd_fast.data.anomalies.kinds import KINDS
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import KINDS as NAMES
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.data.noise_presets import PRESETS
from scrd_fast.errors import InputError
from scrd_fast.ops.add_noise import add_noise
from scrd_fast.spec import ScoringSpec

SIDE = 64
SPEC = ScoringSpec(input_size=SIDE)
OTHERS = [name for name in NAMES if name != "simplex"]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Smooth colour images (count, 64, 64, 3) with grain, uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(30, 225, (count, 8, 8, 3))
    fine = coarse.repeat(8, 1).repeat(8, 2) + rng.normal(0, 8, (count, 64, 64, 3))
    return np.clip(fine, 0, 255).astype(np.uint8)


IMAGES = ImageSet(pictures(12))
EPOCHS, INDICES = np.arange(40) // 12, np.arange(40) % 12
CLEAN = IMAGES.pixels(INDICES, SPEC)
DONORS = Donors(IMAGES, np.arange(12), SPEC)


def law(kind: str, **more) -> NoiseConfig:
    return NoiseConfig(**{"mixture": ((kind, 1.0),), "min_side": 8, "max_share": 0.4,
                          "wavelength": 16.0, "octaves": 3} | more)


def draw(noise: NoiseConfig, clean: torch.Tensor = CLEAN) -> Patches:
    return draw_patches(noise, SIDE, 5, EPOCHS, INDICES, clean=clean, chosen=np.arange(12))


def made(noise: NoiseConfig, rows=slice(None), clean: torch.Tensor = CLEAN, **more) -> Synthesised:
    return synthesise(clean[rows], noise, seed=5, epochs=EPOCHS[rows], indices=INDICES[rows],
                      donors=DONORS, **more)


def test_every_kind_has_its_name():
    assert tuple(KINDS) == NAMES


def test_the_default_draws_and_adds_what_it_always_did():
    """Recorded before there were other kinds than simplex."""
    patches = draw_patches(NoiseConfig(weakest=0.5), 256, 7, np.array([0, 1, 2]),
                           np.array([0, 5, 9]))
    assert patches.boxes.tolist() == [[237, 68, 13, 29], [115, 240, 23, 10], [56, 142, 10, 15]]
    assert patches.seeds.tolist() == [3739083503721854760, 6047811848790287573, 160825723544954435]
    assert patches.strengths.tolist() == [
        0.14200976785072422, 0.15472265138834038, 0.13201278798060728]
    for channels, source in (("independent", CLEAN), ("shared", torch.zeros_like(CLEAN[:, :1]))):
        noise = NoiseConfig(channels=channels)
        drawn = draw_patches(noise, SIDE, 5, EPOCHS, INDICES)
        expected = add_noise(source, drawn.boxes, seeds=drawn.seeds, strength=drawn.strengths)
        assert torch.equal(made(noise).pixels,
                           expected if channels == "independent" else CLEAN + expected)


@pytest.mark.parametrize("channels", ["shared", "independent"])
@pytest.mark.parametrize("kind", NAMES)
def test_a_kind_changes_pixels_in_its_boxes_alone(kind, channels):
    noise = law(kind, channels=channels, strength=0.3)
    patches, (noisy, mask) = draw(noise), made(noise, threshold=0.02)
    assert noisy.dtype == torch.float32
    assert noisy.shape == CLEAN.shape
    assert mask.shape == (40, 1, SIDE, SIDE)
    assert mask.dtype == torch.bool
    inside = torch.zeros_like(mask)
    for row, (top, left, height, width) in zip(patches.rows, patches.boxes, strict=True):
        inside[row, :, top : top + height, left : left + width] = True
    assert sorted(set(patches.rows)) == list(range(40))
    assert torch.equal(torch.where(inside, CLEAN, noisy), CLEAN)
    assert torch.equal(mask, ((noisy - CLEAN).abs() > 0.02).any(1, keepdim=True))
    # Something is seen in every image, and not by one pixel alone.
    assert int(mask.flatten(1).sum(1).min()) >= 5, mask.flatten(1).sum(1)


@pytest.mark.parametrize("strength", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("kind", OTHERS)
def test_the_strength_bounds_the_change(kind, strength):
    noisy, _ = made(law(kind, strength=strength))
    change = (noisy - CLEAN).abs().flatten(1).amax(1)
    assert float(change.max()) <= strength + 1e-6
    assert float(noisy.min()) >= 0
    assert float(noisy.max()) <= 1
    if strength == 0.05:  # every kind can do as much
        assert float(change.median()) == pytest.approx(strength, abs=1e-6)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_factor_is_one_of_the_strength(kind):
    expected = made(law(kind, strength=0.1)).pixels
    assert torch.allclose(made(law(kind, strength=0.2), factors={kind: 0.5}).pixels, expected,
                          rtol=0, atol=1e-7)
    assert torch.equal(made(law(kind, strength=0.1), factors={"other": 9.0}).pixels, expected)


ALL = tuple((name, 1.0) for name in NAMES)


@pytest.mark.parametrize("noise", [law("simplex", mixture=ALL, texture=texture, weakest=0.5)
                                   for texture in ("per_sample", "shared")])
def test_an_image_is_the_same_in_any_batch(noise):
    expected = made(noise)
    for rows in ([0], [17, 3], list(range(39, -1, -1))):
        some = made(noise, rows)
        assert torch.equal(some.pixels, expected.pixels[rows])
        assert torch.equal(some.mask, expected.mask[rows])
    assert not torch.equal(made(noise).pixels, CLEAN)


@pytest.mark.parametrize("kind", NAMES)
def test_grey_images_stay_grey_with_shared_channels(kind):
    grey = ImageSet(pictures(12)[..., 0])
    clean = grey.pixels(INDICES, SPEC)
    noisy = synthesise(clean, law(kind, channels="shared"), seed=5, epochs=EPOCHS, indices=INDICES,
                       donors=Donors(grey, np.arange(12), SPEC)).pixels
    assert torch.equal(noisy, noisy[:, :1].expand(-1, 3, -1, -1))
    assert not torch.equal(noisy, clean)


@pytest.mark.parametrize("kind", ["simplex", "perlin", "gaussian", "shift"])
def test_independent_channels_tint(kind):
    change = made(law(kind)).pixels - CLEAN
    assert float((change[:, 0] - change[:, 2]).abs().flatten(1).amax(1).min()) > 1e-4


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_images_give_numbers(kind, value):
    """Where nothing can be seen to change: black air, saturated white."""
    flat = torch.full((40, 3, SIDE, SIDE), value)
    noisy = made(law(kind, channels="shared"), clean=flat).pixels
    assert bool(torch.isfinite(noisy).all())
    assert float(noisy.min()) >= 0
    assert float(noisy.max()) <= 1
    if kind == "shift":  # it turns to where there is room
        assert float((noisy - flat).abs().flatten(1).amax(1).min()) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("kind", OTHERS)
def test_the_smallest_patches(kind):
    noise = law(kind, min_side=4, max_share=0.01, strength=0.5)
    assert (draw(noise).boxes[:, 2:] == 4).all()
    noisy, mask = made(noise)
    assert bool(torch.isfinite(noisy).all())
    assert bool(mask.flatten(1).any(1).all())


def test_kinds_that_look_avoid_what_is_flat():
    """The right three quarters of these images are black."""
    clean = CLEAN.clone()
    clean[..., SIDE // 4:] = 0
    noise = law("blur", max_share=0.2)
    hit = draw(noise, clean).boxes[:, 1] < SIDE // 4
    assert hit.mean() > 0.7
    simplex = draw(law("simplex", max_share=0.2), clean).boxes[:, 1] < SIDE // 4
    assert simplex.mean() < 0.5


@pytest.mark.slow
def test_how_often_kinds_are_drawn():
    count = 4000
    clean = CLEAN[:1].expand(count, -1, -1, -1)
    noise = law("x", mixture=(("shift", 3), ("blur", 0), ("simplex", 1), ("deform", 1)), min_side=8)
    patches = draw_patches(noise, SIDE, 1, np.zeros(count, int), np.arange(count), clean=clean)
    _, first = np.unique(patches.rows, return_index=True)
    shares = np.bincount(patches.kinds[first], minlength=len(NAMES)) / count
    expected = {"shift": 0.6, "simplex": 0.2, "deform": 0.2}
    for name, share in zip(NAMES, shares, strict=True):
        want = expected.get(name, 0)
        assert abs(share - want) <= 4 * np.sqrt(want * (1 - want) / count), name


def test_shifts_are_one_to_three_blobs():
    counts = np.bincount(np.bincount(draw(law("shift")).rows))
    assert len(counts) == 4
    assert counts[0] == 0
    assert counts[1] > counts[2] + counts[3]


def test_donors_are_other_images_of_those_trained_on():
    chosen = np.array([1, 4, 9])
    patches = draw_patches(law("paste"), SIDE, 5, EPOCHS, INDICES, clean=CLEAN, chosen=chosen)
    assert set(patches.donors) == set(chosen)
    assert (patches.donors != INDICES[patches.rows]).all()
    lone = draw_patches(law("paste"), SIDE, 5, EPOCHS, INDICES, clean=CLEAN, chosen=np.array([4]))
    assert set(lone.donors) == {4}
    with pytest.raises(InputError, match=r"^donors: expected normal images to borrow from"):
        draw_patches(law("blend"), SIDE, 5, EPOCHS, INDICES, clean=CLEAN)
    with pytest.raises(InputError, match=r"^clean: expected the pixels"):
        draw_patches(law("blur"), SIDE, 5, EPOCHS, INDICES)


def test_paste_shows_the_donor():
    """With all of the strength the middle of the blob is the donor's."""
    noise = law("paste", strength=1.0)
    patches = draw(noise)
    borrowed = IMAGES.pixels(patches.borrowed, SPEC)
    noisy = add_patches(CLEAN, noise, patches, borrowed)
    for row, ((top, left, height, width), numbers) in enumerate(
            zip(patches.boxes, patches.numbers, strict=True)):
        y, x = height // 2, width // 2
        weights = blob(int(height), int(width), tuple(numbers[:4]), CLEAN)
        from_y, from_x = numbers[4:6].astype(int) + np.array([y, x])
        there, here = borrowed[row, :, from_y, from_x], CLEAN[row, :, top + y, left + x]
        expected = here + weights[y, x] * (there - here)
        assert torch.allclose(noisy[row, :, top + y, left + x], expected, atol=1e-6)


def test_blend_has_the_gradients_of_the_donor_and_the_ring_of_the_image():
    noise = law("blend", strength=1.0)
    patches = draw(noise)
    borrowed = IMAGES.pixels(patches.borrowed, SPEC)
    unclipped = 0
    noisy = add_patches(CLEAN, noise, patches, borrowed)

    def laplacian(x: torch.Tensor) -> torch.Tensor:
        return (x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:]
                - 4 * x[:, 1:-1, 1:-1])

    for row, ((top, left, height, width), numbers) in enumerate(
            zip(patches.boxes, patches.numbers, strict=True)):
        there_y, there_x = numbers[4:6].astype(int)
        got = noisy[row, :, top : top + height, left : left + width]
        own = CLEAN[row, :, top : top + height, left : left + width]
        there = borrowed[row, :, there_y : there_y + height, there_x : there_x + width]
        ring = torch.ones(height, width, dtype=torch.bool)
        ring[1:-1, 1:-1] = False
        assert torch.equal(got[:, ring], own[:, ring])
        if float(got.min()) > 0 and float(got.max()) < 1:
            unclipped += 1
            assert torch.allclose(laplacian(got), laplacian(there), atol=1e-5)
    assert unclipped > 5


def test_a_ghost_is_the_image_moved():
    noise = law("ghost", strength=1.0)
    patches, noisy = draw(noise), made(noise).pixels
    checked = 0
    for row, ((top, left, height, width), numbers) in enumerate(
            zip(patches.boxes, patches.numbers, strict=True)):
        y, x = top + height // 2, left + width // 2
        down, right = numbers[4:6].astype(int)
        assert (down, right) != (0, 0)
        if 0 <= y + down < SIDE and 0 <= x + right < SIDE:
            weight = blob(int(height), int(width), tuple(numbers[:4]),
                          CLEAN)[height // 2, width // 2]
            here, there = CLEAN[row, :, y, x], CLEAN[row, :, y + down, x + right]
            assert torch.allclose(noisy[row, :, y, x],
                                  here + numbers[6] * weight * (there - here), atol=1e-6)
            checked += 1
    assert checked > 20


def test_blur_takes_away_detail_and_keeps_brightness():
    noise = law("blur", strength=1.0, min_side=16)
    patches, noisy = draw(noise), made(noise).pixels
    for row, (top, left, height, width) in enumerate(patches.boxes):
        middle = (row, slice(None), slice(top + height // 4, top + height - height // 4),
                  slice(left + width // 4, left + width - width // 4))
        rough, smooth = CLEAN[middle], noisy[middle]
        assert float(smooth.diff(dim=2).abs().mean()) < float(rough.diff(dim=2).abs().mean())
        assert abs(float(smooth.mean() - rough.mean())) < 0.12


def test_blobs_touch_their_box_and_end_in_it():
    rng = np.random.default_rng(0)
    for height, width in ((31, 31), (20, 47), (64, 9)):
        for _ in range(20):
            aspect, angle, exponent, _ = draw_blob(rng)
            hard = blob(8 * height, 8 * width, (aspect, angle, exponent, 1e-6),
                        torch.zeros(1, dtype=torch.float64)) > 0
            rows, columns = hard.any(1).nonzero(), hard.any(0).nonzero()
            reached = [int(rows.max() - rows.min() + 1) / (8 * height),
                       int(columns.max() - columns.min() + 1) / (8 * width)]
            assert max(reached) > 0.95
            soft = blob(height, width, (aspect, angle, exponent, 0.5), torch.zeros(1))
            assert float(soft.max()) == 1
            assert float(soft.min()) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_make_anomalies(name):
    noisy, mask = made(PRESETS[name].noise, threshold=0.02)
    assert bool(torch.isfinite(noisy).all())
    assert float(mask.flatten(1).any(1).float().mean()) > 0.9
    assert PRESETS[name].why


def test_smooth_kinds_need_some_pixels():
    with pytest.raises(InputError, match=r"^noise\.min_side: expected at least 4 pixels for other"):
        NoiseConfig(min_side=3, mixture=(("simplex", 1), ("shift", 1)))
    assert NoiseConfig(min_side=6, mixture=(("shift", 1),)).scaled(0.5).min_side == 4
    assert NoiseConfig(min_side=1).scaled(0.5).min_side == 1


@pytest.mark.parametrize("mixture", [(), "simplex", (("simplex",),), (("simplex", "1"),),
                                     (("simplex", True),), (("simplex", float("inf")),)])
def test_mixtures_that_are_refused(mixture):
    with pytest.raises(InputError, match=r"^noise\.mixture: expected .*, got "):
        NoiseConfig(mixture=mixture)
