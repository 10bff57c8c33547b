"""training.batches: the same images for any batch size, process count or resumed run."""

import numpy as np
import pytest
import torch

from scrd_fast.data.anomalies import synthesise
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import KINDS, NoiseConfig
from scrd_fast.errors import InputError
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.batches import Batches, autocast

SPEC = ScoringSpec(input_size=32, blur_sigma=1)
NOISE = NoiseConfig(min_side=3, octaves=2)
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 20, 25, 3)).astype(np.uint8)
CHOSEN = np.array([0, 2, 3, 5, 6, 7, 8])  # an epoch is 7 images


def batches(batch_size: int, steps: int, **more) -> Batches:
    seed = more.pop("seed", 5)
    images = ImageSet(more.pop("images", IMAGES))
    return Batches(images, CHOSEN, SPEC, more.pop("noise", NOISE), seed, batch_size, steps, **more)


def sequence(run: Batches) -> list[torch.Tensor]:
    """Clean and noisy images of a run, one after the other: (images, 3, 32, 32) twice."""
    return [torch.cat(part) for part in zip(*run, strict=True)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


MIXED = NoiseConfig(min_side=4, octaves=2, mixture=tuple((kind, 1.0) for kind in KINDS))


@pytest.mark.parametrize("texture", ["per_sample", "shared"])
def test_any_batch_size_gives_the_same_images(texture):
    """24 images, more than three epochs, in batches that end in the middle of an epoch."""
    noise = NoiseConfig(min_side=3, octaves=2, texture=texture)
    expected = sequence(batches(1, 24, noise=noise))
    assert expected[0].shape == (24, 3, 32, 32)
    for size in (2, 6, 24):
        assert same(sequence(batches(size, 24 // size, noise=noise)), expected)


def test_any_batch_size_gives_the_same_images_of_all_kinds():
    expected = sequence(batches(1, 48, noise=MIXED))
    for size in (3, 16):
        assert same(sequence(batches(size, 48 // size, noise=MIXED)), expected)


@pytest.mark.parametrize("noise", [NOISE, MIXED])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_together_see_what_one_sees(world, noise):
    expected = sequence(batches(2 * world, 4, noise=noise))
    ranks = [sequence(batches(2, 4, rank=rank, world=world, noise=noise)) for rank in range(world)]
    merged = [torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*ranks, strict=True)]
    assert same(merged, expected)


@pytest.mark.parametrize("noise", [NOISE, MIXED])
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_resumed_run_continues_the_sequence(start, ahead, noise):
    """Step 3 begins inside the second epoch."""
    whole = list(batches(3, 6, noise=noise))
    resumed = list(batches(3, 6, start=start, ahead=ahead, noise=noise))
    assert len(resumed) == 6 - start
    assert all(same(a, b) for a, b in zip(whole[start:], resumed, strict=True))


def test_nothing_is_left_to_do():
    for ahead in (False, True):
        assert list(batches(3, 4, start=4, ahead=ahead)) == []


def test_every_image_once_per_epoch_in_a_new_order():
    run = batches(1, 28)
    steps = [run.indices(step) for step in range(28)]
    epochs = np.concatenate([e for e, _ in steps])
    order = np.concatenate([i for _, i in steps]).reshape(4, 7)
    assert epochs.tolist() == np.repeat(range(4), 7).tolist()
    assert np.array_equal(np.sort(order, axis=1), np.tile(CHOSEN, (4, 1)))
    assert len({tuple(row) for row in order.tolist()}) == 4


def test_an_earlier_step_can_be_asked_for_again():
    """The orders of old epochs are forgotten, and come out the same when made anew."""
    run = batches(4, 20)
    first = [run.indices(step) for step in range(20)]
    again = [run.indices(step) for step in reversed(range(20))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_batch_may_span_epochs():
    epochs, indices = batches(16, 1).indices(0)
    assert epochs.tolist() == [0] * 7 + [1] * 7 + [2] * 2
    assert sorted(indices[:7]) == sorted(indices[7:14]) == CHOSEN.tolist()


def test_clean_and_noisy_are_what_they_say():
    run = batches(4, 2)
    epochs, indices = run.indices(1)
    clean, noisy = run.make(1)
    assert torch.equal(clean, to_pixels(IMAGES[indices], SPEC))
    expected = synthesise(clean, NOISE, seed=5, epochs=epochs, indices=indices)
    assert torch.equal(noisy, expected.pixels)
    assert (noisy != clean).flatten(1).any(dim=1).all()


def test_only_images_that_are_trained_on_are_borrowed_from():
    """Those that are not chosen, 1 and 4, are white; all others are black."""
    images = np.zeros_like(IMAGES)
    images[[1, 4]] = 255
    noise = NoiseConfig(min_side=4, strength=1.0, mixture=(("paste", 1.0),))
    _, noisy = sequence(batches(4, 8, noise=noise, images=images))
    assert float(noisy.max()) == 0
    images[[1, 4]], images[8] = 0, 255  # 8 is chosen
    _, noisy = sequence(batches(4, 8, noise=noise, images=images))
    changed = (noisy > 0).flatten(1).any(1) & (noisy < 1).flatten(1).any(1)
    assert 0 < int(changed.sum()) < len(changed)


def test_the_noise_of_an_image_changes_with_the_epoch():
    run = batches(7, 2)
    changes = []
    for step, (clean, noisy) in enumerate(run):
        changes.append((noisy - clean)[np.argsort(run.indices(step)[1])])
    assert (changes[0] != changes[1]).flatten(1).any(dim=1).all()


def test_another_seed_gives_another_run():
    first, second = batches(7, 1), batches(7, 1, seed=6)
    assert first.indices(0)[1].tolist() != second.indices(0)[1].tolist()


def test_a_list_of_images_is_as_good_as_an_array():
    assert same(sequence(batches(3, 3)), sequence(batches(3, 3, images=list(IMAGES))))
    assert same(sequence(batches(3, 3)),
                sequence(batches(3, 3, images=torch.from_numpy(IMAGES))))


@pytest.mark.parametrize("ahead", [False, True])
def test_a_bad_image_reaches_the_caller(ahead):
    """With `ahead` it is found in the thread that reads the next batch."""
    images = IMAGES.astype(np.float32) / 255
    images[5, 3, 4, 0] = np.nan
    with pytest.raises(InputError, match=r"^data, batch of images \[.*\]: images: expected finite"):
        list(batches(1, 7, images=images, ahead=ahead))


def test_precision_names():
    cpu = torch.device("cpu")
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with pytest.raises(InputError, match=r"^precision: expected one of .*'fp32'.*, got 'int8'$"):
        autocast(cpu, "int8")
