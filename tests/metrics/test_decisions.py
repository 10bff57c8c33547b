"""Decisions from scores alone; no engine."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from scrd_fast.errors import InputError, NotFiniteError
from scrd_fast.metrics import decisions as decisions_of
from scrd_fast.metrics.decisions import Decisions, conformal, drift, labelled, normals_needed
from scrd_fast.metrics.ranking import auroc, best_f1, decide
from scrd_fast.records import read_record


def weights_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet([8, 4, 2], n).astype(np.float32)


def normal_scores(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(9, 0.1, n).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1])
@pytest.mark.parametrize("draw", [
    lambda rng, n: rng.normal(size=n), lambda rng, n: rng.standard_cauchy(n),
    lambda rng, n: rng.integers(0, 30, n)], ids=["normal", "heavy tails", "ties"])
def test_false_alarms_keep_the_promise(rate, draw):
    """1000 fresh draws of calibration and test scores: the mean share is at most the promise plus
    three standard errors, and without ties not far below it."""
    rng, shares = np.random.default_rng(7), []
    n = max(normals_needed(rate), 99)
    for _ in range(1000):
        decisions = conformal(draw(rng, n), weights_of(n), rate)
        fresh = draw(rng, 100)
        called = decisions.anomalous(fresh)
        assert np.array_equal(called, decisions.p_values(fresh) <= np.float32(rate + 1e-7))
        shares.append(called.mean())
    error = np.std(shares) / math.sqrt(len(shares))
    assert np.mean(shares) <= rate + 3 * error
    if draw(rng, 5).dtype != np.int64:
        assert np.mean(shares) >= rate - 3 * error


@pytest.mark.parametrize(("rate", "needed"), [
    (0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (1 / 3, 2), (0.07, 14), (0.001, 999)])
def test_how_many_normals_a_rate_needs(rate, needed):
    assert normals_needed(rate) == needed
    conformal(normal_scores(needed), weights_of(needed), rate)
    message = rf"^normals: expected at least {needed} images for a false-alarm rate of .*, got"
    with pytest.raises(InputError, match=message):
        conformal(normal_scores(needed - 1), weights_of(needed - 1), rate)


def test_p_values_by_hand():
    decisions = conformal(np.float32([3, 1, 2, 2]), weights_of(4), 0.2)
    assert decisions.threshold == 3
    np.testing.assert_allclose(decisions.p_values(np.float32([0, 2, 2.5, 3, 9, np.nan])),
                               [1, 0.8, 0.4, 0.4, 0.2, np.nan], rtol=1e-6)
    assert decisions.anomalous(np.float32([3, 3.001, np.nan])).tolist() == [False, True, False]


@pytest.mark.parametrize(("rule", "target"), [
    ("f1", None), ("sensitivity", 0.9), ("specificity", 0.95), ("sensitivity", 0.999)])
def test_thresholds_with_labels(rule, target):
    healthy, sick = normal_scores(400), normal_scores(300, 1) + np.float32(0.5)
    decisions = labelled(healthy, weights_of(400), sick, rule, target, seed=3)
    report = decisions.report
    assert report["images"] == {"normal": 200, "anomalous": 150}
    for name in ("sensitivity", "specificity", "f1", "auroc"):
        value, low, high = report[name]
        assert 0 <= low <= value <= high <= 1
        assert high - low < 0.2
    judged = labelled(healthy, weights_of(400), sick, "f1", seed=3).report["auroc"][0]
    assert report["auroc"][0] == judged  # of the same half, whatever the threshold
    # Over all images, half of which chose it, the target is about reached.
    found, spared = (sick > decisions.threshold).mean(), (healthy <= decisions.threshold).mean()
    if rule != "f1":
        reached = {"sensitivity": found, "specificity": spared}[rule]
        assert reached >= target - 0.03
    else:
        def f1(threshold: float) -> float:
            hits, alarms = (sick > threshold).sum(), (healthy > threshold).sum()
            return 2 * hits / (hits + alarms + len(sick))

        assert f1(decisions.threshold) >= max(map(f1, np.linspace(0, 3, 200))) - 0.02
    again = labelled(healthy, weights_of(400), sick, rule, target, seed=3)
    assert again == decisions
    assert labelled(healthy, weights_of(400), sick, rule, target, seed=4) != decisions


def test_pictures_are_halved_as_they_always_were():
    """Each image its own patient's: the first half of a shuffle of each kind chooses."""
    healthy, sick = normal_scores(41), normal_scores(35, 1) + np.float32(0.5)
    rng = np.random.Generator(np.random.Philox(5))
    halves = [rng.permutation(scores)[: len(scores) // 2] for scores in (healthy, sick)]
    labels = np.repeat([0, 1], [20, 17])
    decisions = labelled(healthy, weights_of(41), sick, "f1", seed=5)
    best = best_f1(labels, np.concatenate(halves))[0]
    assert decide(labels, np.concatenate(halves), decisions.threshold).f1 == best
    judging = [np.setdiff1d(scores, half) for scores, half in zip((healthy, sick), halves,
                                                                  strict=True)]
    assert decisions.report["auroc"][0] == auroc(np.repeat([0, 1], [21, 18]),
                                                 np.concatenate(judging))
    assert decisions.report["images"] == decisions.report["patients"] == {
        "normal": 21, "anomalous": 18}
    own = [f"patient {i}" for i in range(76)]
    assert labelled(healthy, weights_of(41), sick, "f1", patients=own, seed=5) == decisions


def draw_patients(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Patient and label of images of 8 to 30 patients, some of whom have images of both kinds."""
    rng = np.random.default_rng(seed)
    kinds = np.array([[1, 0]] * 4 + [[0, 1]] * 4 + rng.integers(0, 2, (22, 2)).tolist())
    sizes = kinds * rng.integers(1, 9, kinds.shape)
    groups, labels = np.nonzero(sizes)
    repeats = sizes[groups, labels]
    return groups.repeat(repeats), labels.repeat(repeats)


@pytest.mark.parametrize("seed", range(20))
def test_whole_patients_are_in_one_half(seed):
    groups, labels = draw_patients(seed)
    sizes = np.stack([np.bincount(groups[labels == k], minlength=30) for k in (0, 1)], axis=1)
    sizes = sizes[sizes.any(1)]
    half = decisions_of._choose_half(np.random.default_rng(seed), sizes)
    for kind in (0, 1):
        share = sizes[half, kind].sum() / sizes[:, kind].sum()
        assert share == pytest.approx(0.5, abs=0.1)
        assert (sizes[half, kind] > 0).sum() == (sizes[:, kind] > 0).sum() // 2


def test_a_patient_is_one_draw_of_the_report():
    """Ten copies of each image tell no more than one, where their patients are known."""
    healthy, sick = normal_scores(60), normal_scores(60, 1) + np.float32(0.5)
    names = [f"patient {i}" for i in range(120)]
    once = labelled(healthy, weights_of(60), sick, "f1", patients=names).report
    copied = healthy.repeat(10), weights_of(600), sick.repeat(10), "f1"
    known = labelled(*copied, patients=np.repeat(names, 10).tolist()).report
    unknown = labelled(*copied).report
    assert known["images"] == {"normal": 300, "anomalous": 300}
    assert known["patients"] == {"normal": 30, "anomalous": 30}

    def width(report):
        return report["auroc"][2] - report["auroc"][1]

    assert width(known) == pytest.approx(width(once), rel=0.35)
    assert width(unknown) < 0.6 * width(known)


def test_two_patients_of_each_kind_in_each_half():
    healthy, sick = normal_scores(40), normal_scores(40, 1) + np.float32(0.5)
    names = [f"secret {i % 4}" for i in range(40)] + [f"secret {4 + i % 3}" for i in range(40)]
    with pytest.raises(InputError, match=r"^anomalous: expected images of at least 4 patients of"
                       r" each kind, two of them in the half that chooses .*, got 3$") as error:
        labelled(healthy, weights_of(40), sick, "f1", patients=names)
    assert "secret" not in str(error.value)
    names[-1] = "another"
    report = labelled(healthy, weights_of(40), sick, "f1", patients=names).report
    assert report["patients"] == {"normal": 2, "anomalous": 2}
    with pytest.raises(InputError, match=r"^patients: expected \(80,\), got \(3,\)"):
        labelled(healthy, weights_of(40), sick, "f1", patients=names[:3])


def test_figures_that_scatter_in_no_replicate_are_not_certain():
    """Equal scores: every replicate has an AUROC of 1/2."""
    equal = np.ones(40, np.float32)
    assert labelled(equal, weights_of(40), equal, "f1").report["auroc"] == (0.5, 0.0, 1.0)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """The 95 % interval of the sensitivity holds the true one in most of 60 draws."""
    truth, covered = normal_scores(200_000, 99) + np.float32(0.5), 0
    for seed in range(60):
        decisions = labelled(normal_scores(120, seed), weights_of(120),
                             normal_scores(120, 1000 + seed) + np.float32(0.5), "f1", seed=seed)
        _, low, high = decisions.report["sensitivity"]
        covered += low <= (truth > decisions.threshold).mean() <= high
    assert covered >= 49


def test_through_json():
    decisions = labelled(normal_scores(50), weights_of(50), normal_scores(40, 1), "f1")
    text = json.dumps(asdict(decisions))
    read = read_record(Decisions, json.loads(text), "calibration")
    scores = normal_scores(500, 2)
    np.testing.assert_array_equal(read.p_values(scores), decisions.p_values(scores))
    np.testing.assert_array_equal(read.anomalous(scores), decisions.anomalous(scores))
    assert json.dumps(asdict(read)) == text
    assert read == decisions


@pytest.mark.parametrize("change", [
    {"normal_scores": []}, {"normal_scores": [2.0, 1.0]}, {"normal_scores": "abc"},
    {"normal_scores": [1.0, float("nan")]}, {"scale_weights": [[1, 2]]}, {"rule": "magic"},
    {"threshold": None}, {"threshold": float("inf")}, {"threshold": 1e300},
    {"threshold": 10**400}, {"normal_scores": [1, 10**400]}, {"normal_scores": 3},
    {"report": 3}, {"more": 1}])
def test_calibrations_that_are_none(change):
    values = asdict(conformal(np.float32([1, 2]), weights_of(2), 0.5))
    with pytest.raises(InputError, match=r"^calibration"):
        read_record(Decisions, values | change, "calibration")


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: conformal([1, np.nan], weights_of(2), 0.5), NotFiniteError, "^normals: expected fin"),
    (lambda: conformal([1, 2], weights_of(3), 0.5), InputError, r"^normals: expected scores \(N,"),
    (lambda: conformal([1, 2], weights_of(2), 0), InputError, "^fpr: expected a share above 0"),
    (lambda: conformal([1, 2], weights_of(2), 1 - 1e-10), InputError, "^fpr: expected a share"),
    (lambda: conformal([1, 2], weights_of(2), "1"), InputError, "^fpr: expected a share"),
    (lambda: labelled(normal_scores(40), weights_of(40), normal_scores(40), "f1", seed=-1),
     InputError, "^seed: expected an integer from 0"),
    (lambda: conformal([], np.zeros((0, 3)), 0.5), InputError, "^normals: expected at least 1"),
    (lambda: labelled(normal_scores(40), weights_of(40), [], "f1"), InputError,
     "^anomalous: expected at least 20 images of each kind, got 0"),
    (lambda: labelled(normal_scores(4), weights_of(4), normal_scores(40), "f1"), InputError,
     "^normals: expected at least 20 images of each kind, got 4"),
    (lambda: labelled(normal_scores(40), weights_of(40), [np.inf] * 40, "f1"), NotFiniteError,
     "^anomalous: expected finite"),
    (lambda: labelled(normal_scores(40), weights_of(40), normal_scores(40), "best"), InputError,
     "^rule: expected one of"),
    (lambda: labelled(normal_scores(40), weights_of(40), normal_scores(40), "f1", 0.5), InputError,
     "^target: expected"),
    (lambda: labelled(normal_scores(40), weights_of(40), normal_scores(40), "sensitivity"),
     InputError, "^target: expected"),
])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_drift_is_seen_and_not_imagined():
    decisions = conformal(normal_scores(200), weights_of(200), 0.05)
    alarms = sum(bool(drift(decisions, normal_scores(100, s), weights_of(100, s)).drifted)
                 for s in range(1, 301))
    assert alarms <= 3 + 3 * math.sqrt(3)  # one in a hundred
    shifted = drift(decisions, normal_scores(100, 1) + np.float32(0.2), weights_of(100, 1))
    assert shifted.drifted == ("score",)
    turned = drift(decisions, normal_scores(100, 1), weights_of(100, 1)[:, ::-1])
    assert "scale weight 1" in turned.drifted
    assert "score" not in turned.drifted
    assert turned.images == 100
    assert all(turned.p_values[name] < turned.level for name in turned.drifted)


def test_drift_of_a_model_that_does_not_weight():
    """Equal weights differ by rounding between machines, which is none."""
    equal = np.full((200, 3), 1 / 3, np.float32)
    decisions = conformal(normal_scores(200), equal, 0.05)
    found = drift(decisions, normal_scores(100, 1), equal[:100] + np.float32(1e-6))
    assert list(found.p_values) == ["score"]
    assert not found.drifted


def test_drift_needs_images():
    decisions = conformal(normal_scores(200), weights_of(200), 0.05)
    with pytest.raises(InputError, match=r"^recent: expected at least 20 images, got 19"):
        drift(decisions, normal_scores(19), weights_of(19))
    with pytest.raises(NotFiniteError, match=r"^recent: expected finite"):
        drift(decisions, np.full(30, np.nan), weights_of(30))
    with pytest.raises(InputError, match=r"^alpha: expected"):
        drift(decisions, normal_scores(30), weights_of(30), alpha=1)
