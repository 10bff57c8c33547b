"""PaDiM, PatchCore and the autoencoder do what they say, against brute force on small features."""

import numpy as np
import pytest
import torch

from benchmarks.detection.autoencoder import Autoencoder, train_autoencoder
from benchmarks.detection.feature_baselines import (
    NEIGHBOURS,
    REGULARISATION,
    Padim,
    PatchCore,
    choose_coreset,
    make_patches,
    stack_scales,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_padim_is_mahalanobis_distance_at_each_place():
    normal, tested = 100 + drawn(30, 6, 2, 3), 100 + drawn(4, 6, 2, 3, seed=1)
    padim = Padim(normal.split(7), 4, seed=5)
    assert len(set(padim.channels.tolist())) == 4
    found = padim.distances(tested)
    assert found.shape == (4, 2, 3)
    for row in range(2):
        for column in range(3):
            x = normal[:, padim.channels, row, column].double().numpy()
            inverse = np.linalg.inv(np.cov(x.T) + REGULARISATION * np.eye(4))
            for image in range(4):
                d = tested[image, padim.channels, row, column].double().numpy() - x.mean(0)
                assert found[image, row, column].item() == pytest.approx(
                    np.sqrt(d @ inverse @ d), rel=1e-3)
    assert not torch.equal(Padim([normal], 4, seed=6).channels, padim.channels)


def test_scales_are_stacked_at_the_finest_places():
    fine, coarse = drawn(1, 2, 4, 4), drawn(1, 3, 2, 2, seed=1)
    found = stack_scales((fine, coarse))
    assert found.shape == (1, 5, 4, 4)
    for row in range(4):
        for column in range(4):
            expected = torch.cat([fine[0, :, row, column], coarse[0, :, row // 2, column // 2]])
            torch.testing.assert_close(found[0, :, row, column], expected)


def test_patches_are_averages_of_their_surroundings():
    first, second, third = drawn(1, 1, 8, 8), drawn(1, 2, 4, 4, seed=1), torch.ones(1, 3, 2, 2)
    found = make_patches((first, second, third))
    assert found.shape == (1, 5, 4, 4)
    torch.testing.assert_close(found[0, :2, 1, 2], second[0, :, 0:3, 1:4].mean((1, 2)))
    # Of the padding's nine places four are in the picture.
    torch.testing.assert_close(found[0, 2:], torch.full((3, 4, 4), 4 / 9))


@pytest.mark.parametrize("dimensions", [3, 8])
def test_the_coreset_takes_the_farthest_each_time(dimensions):
    """8 dimensions: nothing is projected. 3: the distances are those of the projection, so only
    what holds of any is tested."""
    patches = drawn(40, 8)
    found = choose_coreset(patches, 10, dimensions, seed=2).tolist()
    assert len(set(found)) == 10
    if dimensions == 8:
        chosen = found[:1]
        for _ in range(9):
            nearest = torch.cdist(patches, patches[chosen]).min(1).values
            chosen.append(int(nearest.argmax()))
        assert found == chosen
    # Better spread than the first ten are.
    reach = [torch.cdist(patches, patches[each]).min(1).values.max()
             for each in (found, list(range(10)))]
    assert reach[0] < reach[1]


def test_the_coreset_of_equal_patches_is_of_different_ones():
    assert sorted(choose_coreset(torch.ones(6, 3), 6, 8, seed=0).tolist()) == list(range(6))


@pytest.mark.parametrize("share", [0.5, 0.05])
def test_patchcore_is_the_nearest_of_the_bank_and_equation_7(share):
    """0.05: the bank has fewer patches than neighbours are wanted."""
    bank = PatchCore(drawn(60, 4), share, 8, seed=0)
    assert len(bank.bank) == round(60 * share)
    tested = drawn(3, 4, 2, 2, seed=1)
    distances, scores = bank.distances(tested)
    memory = bank.bank.double().numpy()
    for image in range(3):
        rows = tested[image].flatten(1).T.double().numpy()
        all_distances = np.linalg.norm(rows[:, None] - memory, axis=2)
        np.testing.assert_allclose(distances[image].flatten(), all_distances.min(1), rtol=1e-4)
        worst = all_distances.min(1).argmax()
        nearest = all_distances[worst].argmin()
        near = np.argsort(np.linalg.norm(memory - memory[nearest], axis=1))[:NEIGHBOURS]
        exps = np.exp(all_distances[worst])
        weight = 1 - exps[nearest] / exps[near].sum()
        assert 0 < weight < 1
        assert scores[image].item() == pytest.approx(weight * all_distances[worst, nearest],
                                                     rel=1e-3)


@pytest.mark.slow
def test_the_autoencoder_learns_and_is_the_same_each_time():
    pixels = torch.zeros(8, 3, 32, 32)
    pixels[:, :, 8:20, 4:28] = torch.linspace(0.3, 0.9, 8)[:, None, None, None]

    def error(model: Autoencoder) -> float:
        with torch.no_grad():
            return float((model(pixels) - pixels).abs().mean())

    options = {"batch_size": 4, "learning_rate": 1e-3, "seed": 0}
    short, long = (train_autoencoder(pixels, steps=steps, **options) for steps in (2, 60))
    assert long(pixels).shape == pixels.shape
    assert error(long) < 0.4 * error(short)
    again = train_autoencoder(pixels, steps=2, **options)
    assert error(again) == error(short)
    other = train_autoencoder(pixels, steps=2, **options | {"seed": 1})
    assert error(other) != error(short)
