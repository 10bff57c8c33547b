"""fit_prior: what it learns, when it writes, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.errors import DataError, InputError
from scrd_fast.metrics.ranking import auroc
from scrd_fast.model.checkpoint import load_checkpoint, save_checkpoint
from scrd_fast.model.reference import score_pixels
from scrd_fast.reference.normal_map import NormalMap
from scrd_fast.training import prior as module
from tests.cli.commands import main
from tests.support.models import organs


@pytest.fixture(scope="module")
def path(trained, tmp_path_factory):
    return save_checkpoint(trained[0], tmp_path_factory.mktemp("prior") / "model.safetensors")


@pytest.fixture(scope="module")
def fitted(path):
    """A report, and the checkpoint that was written beside the one without."""
    out = path.with_name("with.safetensors")
    report = scrd_fast.fit_prior(path, organs(60, 64, seed=1), out=out, force=True,
                                 validation=organs(30, 64, seed=2), progress=False)
    return report, out


def test_checkpoint_gets_it_and_nothing_else_changes(path, fitted):
    report, out = fitted
    before, after = load_checkpoint(path), load_checkpoint(out)
    assert before.spec.prior is None
    assert after.spec == replace(before.spec, prior=report.prior)
    assert after.training == before.training
    assert after.metrics["prior"] == {
        "auroc_without": report.auroc_without, "auroc_with": report.auroc_with,
        "gain": list(report.gain), "strength": report.strength}
    for name, value in before.model.state_dict().items():
        assert torch.equal(value, after.model.state_dict()[name]), name
    assert (report.prior.people, report.prior.images) == (60, 60)
    assert report.prior.components <= 60 // 3


@pytest.mark.slow
def test_report_is_what_the_reference_scores(path, fitted):
    """The gain is that of whole models, not of the shortcut over stored distances."""
    report, out = fitted
    held = organs(30, 64, seed=2)
    for where, wanted in ((path, report.auroc_without), (out, report.auroc_with)):
        checkpoint = load_checkpoint(where)
        pixels = torch.from_numpy(held / np.float32(255))[:, None].expand(-1, 3, -1, -1)
        noise = module._noise_of(checkpoint)
        noisy = module.synthesise(
            pixels, replace(noise, strength=noise.strength * report.strength), seed=0,
            epochs=np.full(30, module._EPOCH), indices=np.arange(30)).pixels
        result, _ = score_pixels(checkpoint.model, checkpoint.spec, torch.cat([pixels, noisy]))
        assert auroc(np.repeat([0, 1], 30), result.score(checkpoint.spec)) == pytest.approx(
            wanted, abs=2e-3)


def test_a_normal_map_finds_what_is_normal_at_a_place():
    """Distances with a bump that follows the thumbnail: it is predicted, and so is its spread."""
    rng = np.random.default_rng(0)
    spec = replace(scrd_fast.ScoringSpec(input_size=64, blur_sigma=0.0))
    count = 300
    brightness = rng.normal(0, 1, count)
    thumbs = brightness[:, None, None] * np.linspace(0, 1, 16) + 0.01 * rng.normal(
        0, 1, (count, 16, 16))
    distances = []
    for side in (16, 8, 4):
        place = np.zeros((side, side))
        place[: side // 2] = 1
        noise = 0.02 * (1 + 4 * place) * rng.normal(0, 1, (count, side, side))
        distances.append(torch.from_numpy(
            0.3 + 0.1 * place * brightness[:, None, None] + noise).float())
    seen = module._Seen(tuple(distances), torch.from_numpy(thumbs).float(), torch.ones(count, 3))
    half = [module._Seen(tuple(d[part] for d in distances), seen.thumbs[part], seen.weights[part])
            for part in (slice(0, 200), slice(200, None))]
    found = module._fit_best(*half, spec, people=200, report=lambda *a, **k: None)
    assert isinstance(found, NormalMap)
    terms = module._terms(found.projection.astype(np.float16), found.shift.astype(np.float16),
                          half[1].thumbs)
    predicted = module._predict(terms, found.expected)[:, 0]
    wanted = 0.3 + 0.1 * brightness[200:, None]
    assert np.abs(predicted[:, 2:6].mean((1, 2)) - wanted[:, 0]).max() < 0.03
    assert np.abs(predicted[:, 10:14].mean((1, 2)) - 0.3).max() < 0.03
    spread = np.exp(module._predict(terms, found.log_spread)[:, 0]).mean(0)
    assert 3.5 < spread[2:6].mean() / spread[10:14].mean() < 6


@pytest.mark.slow
def test_every_held_out_patient_is_another_one(path, monkeypatch):
    """Without validation images whole patients judge; none of them is averaged."""
    images = organs(50, 64, seed=3)
    seen = []
    split = module.split_by_patient

    def note(patients, share, seed):
        seen.append(split(patients, share, seed))
        return seen[-1]

    monkeypatch.setattr(module, "split_by_patient", note)
    report = scrd_fast.fit_prior(path, images, out=path.with_name("split.safetensors"), force=True,
                                 progress=False)
    (fit, judge), = seen
    assert not set(fit) & set(judge)
    assert (report.prior.images, len(judge)) == (40, 10)


@pytest.mark.slow
def test_images_that_are_not_aligned_gain_nothing(path, tmp_path, capsys):
    """Turned at random: no place has a distance of its own."""
    rng = np.random.default_rng(5)

    def turned(count, seed):
        return np.stack([np.roll(np.rot90(image, rng.integers(4)), rng.integers(64, size=2), (0, 1))
                         for image in organs(count, 64, seed=seed)])

    target = path.with_name("turned.safetensors")
    normals, held = turned(30, 1), turned(20, 2)
    report = scrd_fast.fit_prior(path, normals, out=target, validation=held, progress=False)
    assert not report.written
    assert report.gain[1] <= 0
    assert not target.exists()
    again = scrd_fast.fit_prior(path, normals, out=target, validation=held, progress=False,
                                force=True)
    assert again == replace(report, written=True)
    assert load_checkpoint(target).spec.prior == report.prior

    cv2 = pytest.importorskip("cv2")
    for part, images in (("normals", normals), ("held", held)):
        (tmp_path / part).mkdir()
        for i, image in enumerate(images):
            cv2.imwrite(str(tmp_path / part / f"{i:02d}.png"), image)
    target.unlink()
    assert main("prior", path, tmp_path / "normals", "--validation", tmp_path / "held", "--out",
                target, "--quiet") == 2
    told = capsys.readouterr().err
    assert "prior: expected a gain on held-out images that is clear of zero, got" in told
    assert "Nothing is written; --force writes it all the same" in told
    assert not target.exists()


@pytest.mark.parametrize(("images", "options", "error", "match"), [
    (organs(19, 64), {"validation": organs(20, 64, seed=1)}, DataError,
     "normals: expected images of at least 20 people to average over, got 19"),
    (organs(24, 64), {}, DataError, "at least 20 people to average over beside those that judge"),
    (np.full((30, 64, 64), 7, np.uint8), {"validation": organs(20, 64, seed=1)}, DataError,
     "normals: expected images that differ, got all of them the same"),
    (organs(30, 64), {"seed": -1}, InputError, "seed: expected an integer from 0"),
    (np.full((30, 64, 64), np.nan, np.float32), {}, InputError, "normals: 30 of 30 images cannot"),
    (organs(20, 64), {"patients": list(map(str, range(20))), "validation": organs(2, 64, seed=1),
                      "validation_patients": ["x", "7"]}, DataError,
     "validation: expected images of other patients than normals has, got some of patient '7'"),
    (organs(30, 64), {"patients": ["a"] * 29}, InputError,
     "patients: expected one for each of the 30 normals in memory, got 29"),
    (organs(30, 64), {"patients": ["a", "b"] * 15, "validation": organs(20, 64, seed=1)},
     DataError, "at least 20 people to average over, got 2"),
    (organs(30, 64), {"foreground": (0.5, 0.1)}, InputError, "prior.foreground: expected None or"),
])
def test_bad_input_is_refused(path, images, options, error, match):
    target = path.with_name("refused.safetensors")
    with pytest.raises(error, match=match):
        scrd_fast.fit_prior(path, images, out=target, force=True, progress=False, **options)
    assert not target.exists()


def test_people_count_not_images(path, tmp_path):
    """Slices of one patient count once."""
    cv2 = pytest.importorskip("cv2")
    for i, image in enumerate(organs(40, 64)):
        cv2.imwrite(str(tmp_path / f"p{i // 4}_{i % 4}.png"), image)
    with pytest.raises(DataError, match=r"at least 20 people to average over.*, got 8"):
        scrd_fast.fit_prior(path, tmp_path, patient_from=r"(p\d+)_", progress=False)


@pytest.mark.slow
def test_the_command_line(path, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    for part, count, seed in (("normals", 40, 1), ("held", 20, 2)):
        (tmp_path / part).mkdir()
        for i, image in enumerate(organs(count, 64, seed=seed)):
            cv2.imwrite(str(tmp_path / part / f"{i:02d}.png"), image)
    out = tmp_path / "with.safetensors"
    assert main("prior", path, tmp_path / "normals", "--validation", tmp_path / "held", "--out",
                out, "--foreground", "0.02,0.1", "--force", "--quiet") == 0
    told = capsys.readouterr().out
    assert "normal map of 40 people and 40 images" in told
    assert "foreground from 0.02 to 0.1" in told
    assert load_checkpoint(out).spec.prior.foreground == (0.02, 0.1)
    assert main("prior", path, tmp_path / "normals", "--foreground", "dark") == 2
    assert "foreground: expected LOW,HIGH, got 'dark'" in capsys.readouterr().err
