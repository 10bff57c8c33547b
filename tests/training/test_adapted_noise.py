"""training.adapted_noise: the law of the noise moves within bounds, and a run goes on with it."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import InputError, ScrdError
from scrd_fast.model.checkpoint import load_checkpoint, read_header, read_tensors, write_tensors
from scrd_fast.training.adapted_noise import LOST, MOST, STEP, TARGET, AdaptedNoise
from scrd_fast.training.batches import Batches
from tests.training.small import SMALL
from tests.training.test_run import content, state_of, stopped_in_step

ROOT = Path(__file__).parents[2]
NOISE = NoiseConfig(min_side=4, max_share=0.25, strength=0.8,
                    mixture=(("simplex", 2), ("shift", 1), ("paste", 1), ("blur", 0)))
KINDS = ["simplex", "shift", "paste"]  # those with a weight
OPTIONS = SMALL | {"noise": NOISE, "adapt_noise": True, "validate_every": 2}


def test_it_begins_as_it_is_configured():
    law = AdaptedNoise.begin(NOISE)
    assert law.factors == dict.fromkeys(KINDS, 1.0)
    assert law.weights == {"simplex": 0.5, "shift": 0.25, "paste": 0.25}
    assert law.noise == replace(NOISE, mixture=tuple(law.weights.items()))


@pytest.mark.parametrize(("auroc", "factor", "weight"), [
    (1.0, 1 / STEP, "less"), (0.95, STEP**-0.5, "less"), (TARGET, 1.0, "same"),
    (0.85, STEP**0.5, "more"), (0.8, STEP, "more"), (0.3, STEP, "more")])
def test_one_move(auroc, factor, weight):
    """What is easy gets fainter and rarer, what is hard stronger and more frequent."""
    moved = AdaptedNoise.begin(NOISE).moved({"simplex": TARGET, "shift": auroc, "paste": TARGET}, 2)
    assert moved.factors == pytest.approx({"simplex": 1.0, "shift": factor, "paste": 1.0})
    share = moved.weights["shift"]
    assert {"less": share < 0.249, "same": abs(share - 0.25) < 1e-9, "more": share > 0.251}[weight]
    assert sum(moved.weights.values()) == pytest.approx(1)


def test_moves_are_bounded_wherever_they_lead():
    rng = np.random.default_rng(0)
    configured, law = AdaptedNoise.begin(NOISE).weights, AdaptedNoise.begin(NOISE)
    reached = set()
    for step in range(400):
        # Long stretches of one figure, which lead to the bounds.
        base = {"simplex": 1.0, "shift": 0.6} if step // 40 % 2 else {"simplex": 0.6, "shift": 1.0}
        before, law = law, law.moved({"paste": float(rng.uniform(LOST, 1)), **base}, step)
        for kind in KINDS:
            factor, weight = law.factors[kind], law.weights[kind]
            assert 1 / MOST <= factor <= MOST
            assert 1 / STEP - 1e-9 <= factor / before.factors[kind] <= STEP + 1e-9
            assert weight >= configured[kind] / MOST**2
            assert 1 / STEP**2 - 1e-9 <= weight / before.weights[kind] <= STEP**2 + 1e-9
            reached.add(factor)
    assert {1 / MOST, MOST} <= reached


def test_what_is_kept_comes_back_to_the_bit():
    law = AdaptedNoise.begin(NOISE)
    for auroc in (0.123456789, 0.91, 0.7):
        law = law.moved(dict.fromkeys(KINDS, auroc), 2)
    assert AdaptedNoise.begin(NOISE, law.entry()) == law


def test_a_kind_that_is_never_seen_stops_the_training_in_time():
    law, seen = AdaptedNoise.begin(NOISE), dict.fromkeys(KINDS, TARGET)
    at_bound = 0
    while at_bound < 2:
        at_bound += law.factors["shift"] == MOST
        law = law.moved(seen | {"shift": LOST - 0.01}, 2)
    again = law.moved(seen | {"shift": LOST}, 2)  # one validation in which it is seen
    assert again.kinds["shift"].lost == 0
    with pytest.raises(ScrdError, match=(
            r"^train: the noise's kind 'shift' is not seen: after step 6 its strength has been at"
            r" its upper bound, 3\.2 \(4 times noise\.strength\), for 3 validations with an AUROC"
            r" below 0\.55, now 0\.540; leave the kind out of noise\.mixture, raise"
            r" noise\.strength or noise\.max_share, or train without adapt_noise$")):
        law.moved(seen | {"shift": LOST - 0.01}, 6)


@pytest.mark.parametrize("figure", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_stops_the_training(figure):
    with pytest.raises(ScrdError, match=r"^train: the AUROC of the noise's kind 'paste' is "
                                        rf"{figure} after step 4, at the strength 0\.8 of at most"
                                        r" 3\.2; lower learning_rate"):
        AdaptedNoise.begin(NOISE).moved(dict.fromkeys(KINDS, 0.9) | {"paste": figure}, 4)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_bit_for_bit(images, tmp_path):
    """In step 4, the first after the second validation."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    expected = scrd_fast.train(images, whole, steps=6, **OPTIONS)
    for stop in (3, 4):
        with stopped_in_step(stop):
            scrd_fast.train(images, parts, steps=6, resume=stop > 3, **OPTIONS)
    scrd_fast.train(images, parts, steps=6, resume=True, **OPTIONS)
    assert content(parts) == content(whole)
    history = read_header(state_of(whole), "training state")["history"]
    assert [entry["step"] for entry in history] == [2, 4, 6]
    assert all(list(entry["noise"]) == KINDS for entry in history)
    assert expected.metrics["history"][0]["noise"]["shift"]["factor"] != 1
    assert load_checkpoint(whole).metrics["history"][0] == history[0]


@pytest.mark.slow
def test_a_finished_run_that_is_extended_is_a_longer_run(images, tmp_path):
    """After 3 steps, no multiple of validate_every, the law stays as it is."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    scrd_fast.train(images, whole, steps=4, **OPTIONS)
    short = scrd_fast.train(images, parts, steps=3, **OPTIONS)
    assert ["noise" in entry for entry in short.metrics["history"]] == [True, False]
    scrd_fast.train(images, parts, steps=4, resume=True, **OPTIONS)
    assert content(parts) == content(whole)


@pytest.mark.slow
def test_batches_follow_the_law(images, tmp_path, monkeypatch):
    """The batches after a validation are drawn by what it found, not before."""
    made = []
    original = Batches.__init__

    def init(self, *arguments, **more):
        original(self, *arguments, **more)
        made.append((self.start, self.steps, dict(self.noise.mixture), self.factors))

    monkeypatch.setattr(Batches, "__init__", init)
    history = scrd_fast.train(images, tmp_path / "m.safetensors", steps=5,
                              **OPTIONS).metrics["history"]
    assert [each[:2] for each in made] == [(0, 2), (2, 4), (4, 5)]
    for (*_, weights, factors), law in zip(
            made, [None, *(entry["noise"] for entry in history[:2])], strict=True):
        law = AdaptedNoise.begin(NOISE, law)
        assert (weights, factors) == (law.weights, law.factors)


@pytest.mark.slow
def test_what_is_plain_to_see_gets_fainter(images, tmp_path):
    """Images are alike but for grain: shifts by 0.8 stand out without any training."""
    noise = NoiseConfig(min_side=8, max_share=0.9, strength=0.8, mixture=(("shift", 1),))
    history = scrd_fast.train(images, tmp_path / "m.safetensors", steps=12, **OPTIONS | {
        "noise": noise, "teacher": "random"}).metrics["history"]
    laws = [entry["noise"]["shift"] for entry in history]
    factors = [1.0, *(law["factor"] for law in laws)]
    for law, before, after in zip(laws, factors[:-1], factors[1:], strict=True):
        assert (after < before) == (law["auroc"] > TARGET)
    assert min(factors) < 1


# A kind that nothing can see: its strength is far below the rounding of pixels.
PLANTED = OPTIONS | {"validate_every": 1, "noise": NoiseConfig(
    min_side=4, max_share=0.25, strength=4e-30, mixture=(("shift", 1),))}
RUNS_AWAY = (r"^train: the noise's kind 'shift' is not seen: after step {} its strength has been at"
             r" its upper bound, 1\.6e-29 \(4 times noise\.strength\), for 3 validations")


@pytest.mark.slow
def test_the_planted_runaway_is_stopped(images, tmp_path):
    """Taken up on its way, with the strength at its bound."""
    out = tmp_path / "m.safetensors"
    scrd_fast.train(images, out, steps=1, **PLANTED)
    header, tensors = read_tensors(state_of(out), "training state")
    header["history"][0]["noise"]["shift"]["factor"] = MOST
    write_tensors(state_of(out), tensors, header)
    with pytest.raises(ScrdError, match=RUNS_AWAY.format(4)):
        scrd_fast.train(images, out, steps=40, resume=True, **PLANTED)
    # What was kept before stays.
    header = read_header(state_of(out), "training state")
    assert header["step"] == 3
    assert header["history"][-1]["noise"]["shift"]["lost"] == 2
    assert load_checkpoint(out).metrics["step"] <= 3


@pytest.mark.slow
def test_the_planted_runaway_is_stopped_all_the_way(images, tmp_path):
    out = tmp_path / "m.safetensors"
    with pytest.raises(ScrdError, match=RUNS_AWAY.format(r"\d+")):
        scrd_fast.train(images, out, steps=40, **PLANTED)
    history = read_header(state_of(out), "training state")["history"]
    factors = [entry["noise"]["shift"]["factor"] for entry in history]
    assert factors == sorted(factors)
    assert factors[-3:] == [MOST] * 3


@pytest.mark.slow
def test_without_it_nothing_is_kept_of_it(images, tmp_path):
    made = scrd_fast.train(images, tmp_path / "m.safetensors", steps=2,
                           **OPTIONS | {"adapt_noise": False})
    assert all("noise" not in entry for entry in made.metrics["history"])


@pytest.mark.slow
def test_curves_are_written(images, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the tensorboard extra")
    made = scrd_fast.train(images, tmp_path / "m.safetensors", steps=4,
                           tensorboard=tmp_path / "tb", **OPTIONS)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    last = AdaptedNoise.begin(NOISE, made.metrics["history"][-1]["noise"])
    for kind in KINDS:
        for name, value in (("strength", 0.8 * last.factors[kind]), ("weight", last.weights[kind]),
                            ("auroc", last.kinds[kind].auroc)):
            points = events.Scalars(f"{name}/{kind}")
            assert [point.step for point in points] == [2, 4]
            assert points[-1].value == pytest.approx(value, rel=1e-6)


def test_it_needs_held_out_normals(images, tmp_path):
    with pytest.raises(InputError, match=r"^adapt_noise: expected False with the selection"):
        scrd_fast.train(images, tmp_path / "m.safetensors", test=(images, np.arange(24) % 2),
                        selection="published_test", **OPTIONS)


@pytest.mark.slow
def test_two_processes_go_by_one_law(images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    script = tmp_path / "run.py"
    script.write_text(f"""
import os
import numpy as np, torch, torch.distributed as dist
import scrd_fast
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.training import loop
torch.set_num_threads(1)
laws = []
class Batches(loop.Batches):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        laws.append((self.noise.mixture, self.factors))
loop.Batches = Batches
dist.init_process_group("gloo")
scrd_fast.train(np.load({str(tmp_path / "images.npy")!r}), {str(tmp_path / "m.safetensors")!r},
    backbone="resnet18", teacher="random", input_size=32, batch_size=2, progress=False, steps=3,
    validate_every=1, adapt_noise=True, noise=NoiseConfig(
        min_side=4, max_share=0.25, strength=0.8, mixture=(("simplex", 1), ("shift", 1))))
parts = [None, None]
dist.all_gather_object(parts, laws)
assert parts[0] == parts[1] and len(laws) == 3 and laws[0] != laws[2], parts
os.write(1, b"laws agree\\n")  # at once: two processes write
loop.leave_process_group()
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("laws agree") == 2
