"""Figures of an engine against the reference, on made-up scores; the probe and golden images."""

import hashlib
import math

import numpy as np
import pytest
import torch

from scrd_fast.backends.registry import PRECISIONS
from scrd_fast.building.judge import make_probe, odd_pixels
from scrd_fast.data.golden_images import golden_images
from scrd_fast.errors import InputError
from scrd_fast.metrics.agreement import (
    JUDGED_FROM,
    LIMITS,
    Limits,
    Report,
    broken_limits,
    compare,
    flipped,
    relative_error,
)
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.spec import ScoringSpec

N = 240
SPEC = ScoringSpec(input_size=64)


def reference(count: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores 0, 1, ..., count - 1 and maps from 0.5 to 2.5."""
    maps = torch.full((count, 4, 4), 0.5)
    maps[:, 0, 0] = 2.5
    return torch.arange(count, dtype=torch.float32), maps


@pytest.mark.parametrize("labels", [None, np.arange(N) % 3 // 2])
def test_equal_scores_have_no_error(labels):
    scores, maps = reference()
    report = compare(labels, scores.clone(), maps.clone(), scores, maps)
    assert (report.images, report.map_error, report.score_error, report.flipped) == (N, 0, 0, 0)
    assert report.rank_correlation == pytest.approx(1, abs=1e-12)
    assert report.auroc_change == (None if labels is None else 0)
    for limits in LIMITS.values():
        assert broken_limits(report, limits) == []


def test_known_errors():
    """The largest difference counts: of maps relative to their range, of scores to the largest."""
    scores, maps = reference()
    other_scores, other_maps = scores.clone(), maps.clone()
    other_scores[17] += 0.239
    other_scores[18] -= 0.1
    other_maps[3, 2, 1] -= 0.25
    other_maps[5] += 0.1
    report = compare(None, other_scores, other_maps, scores, maps)
    assert report.score_error == pytest.approx(0.239 / 239, rel=1e-5)
    assert report.map_error == pytest.approx(0.25 / 2, rel=1e-6)


def test_relative_error_of_zeros():
    assert relative_error(torch.tensor([0.0, 0.0]), torch.zeros(2)) == 0
    assert relative_error(torch.tensor([0.0, -0.5]), torch.zeros(2)) == 0.5
    assert relative_error(torch.tensor([-3.0, 1.0]), torch.tensor([-4.0, 1.0])) == 0.25


def test_constant_maps_have_an_absolute_error():
    scores, maps = reference()
    constant = torch.ones_like(maps)
    report = compare(None, scores, constant + 0.5, scores, constant)
    assert report.map_error == 0.5


def test_swapped_ranks_lower_the_correlation():
    """Spearman: 1 - 6 sum d^2 / (n (n^2 - 1))."""
    scores, maps = reference()
    for i, j in ((10, 11), (10, 30), (0, N - 1)):
        swapped = scores.clone()
        swapped[[i, j]] = scores[[j, i]]
        report = compare(None, swapped, maps, scores, maps)
        expected = 1 - 6 * 2 * (j - i) ** 2 / (N * (N**2 - 1))
        assert report.rank_correlation == pytest.approx(expected, abs=1e-12)
    report = compare(None, scores.flip(0), maps, scores, maps)
    assert report.rank_correlation == pytest.approx(-1, abs=1e-12)


def test_auroc_and_its_change():
    """Anomalies score highest; then one normal image rises above all 40 of them."""
    scores, maps = reference()
    labels = (np.arange(N) >= 200).astype(int)
    other = scores.clone()
    other[0] = 1000
    report = compare(labels, other, maps, scores, maps)
    assert report.auroc == pytest.approx(1 - 1 / 200, abs=1e-12)
    assert report.auroc_change == pytest.approx(1 / 200, abs=1e-12)
    worse = compare(labels, scores, maps, other, maps)
    assert worse.auroc == 1
    assert worse.auroc_change == pytest.approx(1 / 200, abs=1e-12)


def test_flipped_decisions():
    """Scores 0 to 239: the percentiles 90 to 99 are 215.1 to 236.6, the thresholds
    the middles between the scores beside them: 215.5 to 236.5."""
    scores, maps = reference()
    for moved, crossed in ((100.0, 0), (215.6, 1), (226.0, 5), (1000.0, 10)):
        other = scores.clone()
        other[0] = moved
        report = compare(None, other, maps, scores, maps)
        assert report.flipped == pytest.approx(crossed / (10 * N), abs=1e-15)


def test_scores_that_only_rounding_tells_apart_count_as_one():
    """Scores 215 and 216 and 217 made to differ by 1e-3 of 239 at most: their threshold, of the
    90th percentile, lies above them."""
    scores, maps = reference()
    scores[216:218] = torch.tensor([215.001, 215.0015])
    other = scores.clone()
    other[215:218] = torch.tensor([215.0015, 215.0, 215.0005])
    assert compare(None, other, maps, scores, maps).flipped == 0
    other[217] = 216.6  # above the middle between 215.0015 and 218
    assert compare(None, other, maps, scores, maps).flipped > 0


def test_thresholds_come_from_the_normal_images():
    """With the upper half anomalous, the thresholds lie from 107.1 to 117.8."""
    scores, maps = reference()
    labels = (np.arange(N) >= 120).astype(int)
    other = scores.clone()
    other[0] = 119
    assert compare(labels, other, maps, scores, maps).flipped == 1 / N
    assert compare(None, other, maps, scores, maps).flipped == 0


@pytest.mark.parametrize("count", [1, 2, JUDGED_FROM - 1])
def test_few_images_are_not_judged_by_ranks(count):
    scores, maps = reference(count)
    report = compare(np.arange(count) % 2, scores, maps, scores, maps)
    assert report.rank_correlation is report.auroc is report.auroc_change is None
    assert report.images == count
    assert broken_limits(report, LIMITS["bf16"]) == []


@pytest.mark.parametrize("part", ["scores", "maps"])
def test_values_that_are_not_finite_break_the_limits(part):
    scores, maps = reference()
    bad = {"scores": scores.clone(), "maps": maps.clone()}
    bad[part].view(-1)[7] = float("nan")
    report = compare(None, bad["scores"], bad["maps"], scores, maps)
    assert broken_limits(report, LIMITS["fp32"])
    if part == "scores":
        assert broken_limits(report, LIMITS["bf16"])


def test_texts_of_broken_limits():
    report = Report(images=N, map_error=0.25, score_error=1e-5, rank_correlation=0.5, auroc=0.9,
                    auroc_change=0.1, flipped=0.01)
    limits = Limits(map_error=1e-4, score_error=1e-4, rank_correlation=0.999, auroc_change=0.002,
                    flipped=0.01)
    assert broken_limits(report, limits) == [
        "map_error: expected <= 0.0001, got 0.25",
        "rank_correlation: expected >= 0.999, got 0.5",
        "auroc_change: expected <= 0.002, got 0.1",
    ]
    assert broken_limits(report, Limits()) == []


def test_every_precision_has_limits():
    assert set(LIMITS) == set(PRECISIONS)


def test_probe_without_images():
    first, again = make_probe(SPEC, None, 9), make_probe(SPEC, None, 9)
    assert first.labels is None
    assert first.pixels.shape == (9, 3, 64, 64)
    assert first.pixels.dtype == torch.float32
    assert torch.equal(first.pixels, again.pixels)
    assert float(first.pixels.min()) >= 0
    assert float(first.pixels.max()) <= 1


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, 40, 50)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["array", "list", "tensor"])
def test_probe_of_images(kind):
    images = pictures(11)
    given = {"array": images, "list": list(images), "tensor": torch.from_numpy(images)}[kind]
    first, again = make_probe(SPEC, given, 8), make_probe(SPEC, given, 8)
    assert torch.equal(first.pixels, again.pixels)
    assert first.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 7
    clean, noisy = first.pixels[:8].split(4)
    # Spread over the whole set, first and last among them.
    assert torch.equal(clean, to_pixels(images[[0, 3, 6, 10]], SPEC))
    changed = (clean != noisy).flatten(2).any(dim=2)
    assert changed.all()
    assert ((clean != noisy).float().mean(dim=(1, 2, 3)) < 0.1).all()


@pytest.mark.parametrize(("images", "count", "used"), [(50, 20, 10), (1, 2, 1)])
def test_probe_size(images, count, used):
    found = make_probe(SPEC, pictures(images), count)
    assert len(found.pixels) == 2 * used + 7
    assert found.labels.tolist() == [0] * used + [1] * used + [-1] * 7


def test_odd_content():
    """Last in the probe: black, white, grey, three of extreme contrast, noise; not in the AUROC."""
    odd = make_probe(SPEC, pictures(4), 8).pixels[8:]
    assert torch.equal(odd, odd_pixels(SPEC))
    assert [float(image.mean()) for image in odd[:5]] == [0, 1, 0.5, 0.5, 0.5]
    assert len(odd[3].unique()) == 2
    assert int(odd[5].sum()) == 3
    assert float(odd[6].std()) > 0.25
    assert 0 <= float(odd.min()) < float(odd.max()) <= 1
    labels = np.repeat([0, 1, -1], [N // 2 - 1, N // 2, 1])
    scores, maps = reference()
    other = scores.clone()
    other[-1] = -1e6  # the odd image
    report = compare(labels, other, maps, scores, maps)
    assert report.auroc == 1
    assert report.auroc_change == 0


@pytest.mark.parametrize("count", [1, 2, 11, 51, 100, 101])
def test_no_decision_hangs_on_rounding(count):
    """Percentiles of some numbers of images are the scores of images."""
    normal = np.random.default_rng(0).gamma(9, 0.1, count).repeat(2)
    assert flipped(normal * (1 + 1e-9), normal, normal) == 0
    assert flipped(normal * (1 - 1e-9), normal, normal) == 0
    if count > 10:
        assert flipped(normal * 2, normal, normal) > 0.03


def test_golden_images_are_made_by_their_numbers():
    """Each comes from (seed, number), so a longer list begins with the shorter one."""
    many, few = golden_images(13, 64), golden_images(5, 64)
    assert all(np.array_equal(a, b) for a, b in zip(many, few, strict=False))
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in many)
    digests = {hashlib.sha256(image.tobytes()).hexdigest() for image in many}
    assert len(digests) == 13
    others = golden_images(13, 64, seed=1)
    assert not any(a.shape == b.shape and np.array_equal(a, b)
                   for a, b in zip(many, others, strict=True))


def test_golden_images_have_odd_sizes_too():
    for size in (32, 64, 96):
        shapes = [image.shape[:2] for image in golden_images(24, size)]
        assert all(shape == (size, size) for i, shape in enumerate(shapes) if i % 4 != 3)
        odd = [shape for i, shape in enumerate(shapes) if i % 4 == 3]
        assert all(size // 2 <= side < 2 * size for shape in odd for side in shape)
        assert any(height != width for height, width in odd)


def test_few_images_still_give_enough_to_judge():
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)
    probe = make_probe(SPEC, images, 200)
    assert len(probe.pixels) == len(probe.labels) >= 200
    assert (probe.labels == 1).sum() == len(probe.labels) - 3 - 7
    noisy = probe.pixels[3:-7]
    assert len({p.numpy().tobytes() for p in noisy}) == len(noisy)


@pytest.mark.parametrize("limit", [math.inf, math.nan, True, "much", 1e40])
def test_limits_are_finite_numbers(limit):
    """Others could be written into a file, and not be read back."""
    with pytest.raises(InputError, match=r"^limits\.flipped: expected None or a finite number"):
        Limits(flipped=limit)


def test_scores_without_an_order_agree_with_none():
    maps = torch.zeros(N, 4, 4)
    report = compare(None, torch.ones(N), maps, torch.arange(N).float(), maps)
    assert report.rank_correlation == 0
