"""Going on with a training: the files of a run in parts are those of one in one go, to the byte."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.data.noise_config import KINDS, NoiseConfig
from scrd_fast.errors import CheckpointError, InputError
from scrd_fast.model.checkpoint import load_checkpoint, read_header, read_tensors, write_tensors
from scrd_fast.model.scrd import new_model
from scrd_fast.training import run as run_module
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.evaluation import Validation
from scrd_fast.training.run import Run, steps_done
from scrd_fast.training.trainer import Trainer
from tests.training.small import SMALL

OPTIONS = SMALL | {"validate_every": 2}


class StopError(Exception):
    """The process ends."""


@contextmanager
def stopped_in_step(number: int) -> Iterator[None]:
    original = Trainer.step

    def step(self, step, *batch):
        if step == number:
            raise StopError
        return original(self, step, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(StopError):
            yield


def state_of(out: Path) -> Path:
    return out.with_suffix(".state.safetensors")


def content(out: Path) -> tuple[bytes, bytes]:
    """Of the checkpoint and of the state: configuration, history and tensors."""
    return out.read_bytes(), state_of(out).read_bytes()


# CPUs are slow in half precision.
@pytest.mark.parametrize("precision", [
    "fp32", *(pytest.param(half, marks=pytest.mark.slow) for half in ("bf16", "fp16"))])
def test_an_interrupted_run_goes_on_bit_for_bit(images, tmp_path, precision):
    options = OPTIONS | {"steps": 6, "weighting": "scale", "precision": precision,
                         "schedule": "cosine"}
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    expected = scrd_fast.train(images, whole, **options)
    with stopped_in_step(4):
        scrd_fast.train(images, parts, **options)
    assert steps_done(parts) == 4
    resumed = scrd_fast.train(images, parts, resume=True, **options)
    assert resumed.metrics["history"] == expected.metrics["history"]
    assert content(parts) == content(whole)


@pytest.mark.slow
def test_a_slim_student_is_trained_recorded_and_gone_on_with(images, tmp_path):
    options = OPTIONS | {"student": "slim", "steps": 3}
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    trained = scrd_fast.train(images, whole, **options)
    assert trained.config.student == trained.training["student"] == "slim"
    with stopped_in_step(2):
        scrd_fast.train(images, parts, **options)
    with pytest.raises(CheckpointError, match="got another: student: slim -> full; resume with"):
        scrd_fast.train(images, parts, resume=True, **options | {"student": "full"})
    scrd_fast.train(images, parts, resume=True, **options)
    assert content(parts) == content(whole)
    before = new_model("resnet18", trained.training["seed"], "slim").state_dict()
    moved = {name for name, value in trained.model.state_dict().items()
             if not torch.equal(value, before[name])}
    assert {f"student.projections.{k}.{part}" for k in range(3)
            for part in ("weight", "bias")} <= moved


@pytest.mark.slow
def test_a_state_from_before_there_was_a_slim_student(images, tmp_path):
    """Format 2 told no student: it goes on with the full one, to the bit."""
    out, whole = tmp_path / "m.safetensors", tmp_path / "whole.safetensors"
    scrd_fast.train(images, whole, steps=4, **OPTIONS)
    scrd_fast.train(images, out, steps=2, **OPTIONS)
    for path, kind in ((out, "checkpoint"), (state_of(out), "training state")):
        header, values = read_tensors(path, kind)
        del header["training"]["student"]
        if kind == "checkpoint":
            del header["model"]["student"]
        write_tensors(path, values, header | {"format": 2})
    scrd_fast.train(images, out, steps=4, resume=True, **OPTIONS)
    assert content(out) == content(whole)


@contextmanager
def figures(by_step: dict[int, float], steps: list[int]) -> Iterator[None]:
    """Validations give these figures, in the order of the steps after which they happen."""
    left = list(steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "auroc", lambda *_: by_step[left.pop(0)])
        patch.setattr(Validation, "standard_error", lambda *_: 0.05)
        yield
    assert left == []


@pytest.mark.slow
@pytest.mark.parametrize(("by_step", "stop"), [
    ({2: 0.5, 3: 0.9, 4: 0.4, 6: 0.3}, 3),  # the third step, which one of them judges, is the best
    ({2: 0.5, 3: 0.9, 4: 0.6, 6: 0.3}, 5),
    ({2: 0.5, 3: 0.2, 4: 0.5, 6: 0.4}, None),
], ids=["displaced", "displaced, then better", "not displaced"])
def test_a_finished_run_that_is_extended_is_a_longer_run(images, tmp_path, by_step, stop):
    """3 steps are no multiple of validate_every: the model is judged after them, too, which a run
    of 6 steps does not do. stop: the step in which the longer run is interrupted."""
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    with figures(by_step, [2, 4, 6]):
        expected = scrd_fast.train(images, whole, steps=6, **OPTIONS)
    with figures(by_step, [2, 3]):
        short = scrd_fast.train(images, parts, steps=3, **OPTIONS)
    assert short.metrics["step"] == load_checkpoint(parts).metrics["step"] == (
        3 if by_step[3] > by_step[2] else 2)
    assert [entry["step"] for entry in short.metrics["history"]] == [2, 3]
    if stop is not None:
        with figures(by_step, [4] if stop > 4 else []), stopped_in_step(stop):
            scrd_fast.train(images, parts, steps=6, resume=True, **OPTIONS)
    with figures(by_step, [6] if stop == 5 else [4, 6]):
        longer = scrd_fast.train(images, parts, steps=6, resume=True, **OPTIONS)
    assert longer.metrics["history"] == expected.metrics["history"]
    assert content(parts) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(("aurocs", "step"), [
    ([0.5, 0.9, 0.88, 0.84], 6),  # 0.84 is further from the largest than 0.05
    ([0.9, 0.86, 0.86, 0.86], 8),
    ([0.9, 0.86, 0.92, 0.8], 6),
    ([0.9, 0.84, 0.84, 0.84], 2),
    ([1.0, 1.0, 1.0, 0.2], 6)])
def test_of_figures_that_luck_may_explain_the_last_is_chosen(images, tmp_path, aurocs, step):
    out = tmp_path / "m.safetensors"
    by_step = dict(zip((2, 4, 6, 8), aurocs, strict=True))
    with figures(by_step, [*by_step]):
        found = scrd_fast.train(images, out, steps=8, **OPTIONS)
    assert found.metrics["step"] == load_checkpoint(out).metrics["step"] == step
    assert [entry["standard_error"] for entry in found.metrics["history"]] == [0.05] * 4


@pytest.mark.slow
def test_the_published_choice_is_the_first_of_the_largest(images, tmp_path):
    out = tmp_path / "m.safetensors"
    test = images[:4], [0, 1, 0, 1]
    by_step = {2: 0.8, 4: 0.9, 6: 0.9, 8: 0.89}
    with figures(by_step, [*by_step]):
        found = scrd_fast.train(images[4:], out, steps=8, selection="published_test", test=test,
                                **OPTIONS)
    assert found.metrics["step"] == 4


@pytest.mark.slow
def test_a_run_without_a_validation_of_its_schedule_is_extended(images, tmp_path):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    by_step = {1: 0.9, 2: 0.2}
    with figures(by_step, [2]):
        scrd_fast.train(images, whole, steps=2, **OPTIONS)
    with figures(by_step, [1]):
        scrd_fast.train(images, parts, steps=1, **OPTIONS)
    with figures(by_step, [2]):
        scrd_fast.train(images, parts, steps=2, resume=True, **OPTIONS)
    assert content(parts) == content(whole)


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """The checkpoint of 3 steps, beside its state."""
    out = tmp_path_factory.mktemp("finished") / "m.safetensors"
    with figures({2: 0.5, 3: 0.9}, [2, 3]):
        scrd_fast.train(images, out, steps=3, **OPTIONS)
    return out


@pytest.fixture
def out(finished, tmp_path) -> Path:
    """A copy of it."""
    copy = tmp_path / "m.safetensors"
    copy.write_bytes(finished.read_bytes())
    state_of(copy).write_bytes(state_of(finished).read_bytes())
    return copy


@pytest.mark.slow
def test_a_finished_run_is_given_back_as_it_is(images, out):
    """Its images are not even looked at."""
    before = content(out), out.stat().st_mtime_ns
    again = scrd_fast.train("gone", out, steps=3, resume=True, **OPTIONS)
    assert (content(out), out.stat().st_mtime_ns) == before
    assert again.metrics["step"] == 3
    assert [entry["step"] for entry in again.metrics["history"]] == [2, 3]
    with pytest.raises(InputError, match=r"steps: expected at least the 3 that are done .*got 2"):
        scrd_fast.train(images, out, steps=2, resume=True, **OPTIONS)
    assert (content(out), out.stat().st_mtime_ns) == before


@pytest.mark.slow
def test_the_best_model_outlives_a_stop_between_state_and_checkpoint(images, tmp_path, finished):
    out = tmp_path / "m.safetensors"
    original = run_module.save_checkpoint

    def stopped_at_the_end(checkpoint, path):
        if checkpoint.metrics["step"] == 3:
            raise StopError
        return original(checkpoint, path)

    with pytest.MonkeyPatch.context() as patch, figures({2: 0.5, 3: 0.9}, [2, 3]):
        patch.setattr(run_module, "save_checkpoint", stopped_at_the_end)
        with pytest.raises(StopError):
            scrd_fast.train(images, out, steps=3, **OPTIONS)
    assert load_checkpoint(out).metrics["step"] == 2
    scrd_fast.train(images, out, steps=3, resume=True, **OPTIONS)
    assert content(out) == content(finished)


@pytest.mark.slow
def test_a_lost_checkpoint_is_missed_at_once(images, tmp_path):
    out = tmp_path / "m.safetensors"
    with figures({2: 0.9, 4: 0.5}, [2, 4]), stopped_in_step(5):
        scrd_fast.train(images, out, steps=6, **OPTIONS)
    out.unlink()
    with pytest.raises(CheckpointError, match=r"expected the best checkpoint .* of step 2, got no"):
        scrd_fast.train(images, out, steps=6, resume=True, **OPTIONS)


@pytest.mark.slow
def test_nothing_to_resume_begins(images, tmp_path, finished):
    out = tmp_path / "m.safetensors"
    with figures({2: 0.5, 3: 0.9}, [2, 3]), pytest.warns(UserWarning, match="nothing to resume"):
        scrd_fast.train(images, out, steps=3, resume=True, **OPTIONS)
    assert content(out) == content(finished)


@pytest.mark.slow
def test_without_its_state_a_finished_run_is_not_replaced(images, out):
    state_of(out).unlink()
    before = out.read_bytes()
    for steps in (3, 6):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: there is a checkpoint, but not "
                                                  r"the state .*m\.state\.safetensors"):
            scrd_fast.train(images, out, steps=steps, resume=True, **OPTIONS)
    assert out.read_bytes() == before


def test_a_new_run_removes_the_state_of_the_one_before(images, out):
    with stopped_in_step(0):
        scrd_fast.train(images, out, steps=6, seed=5, **OPTIONS)
    assert not state_of(out).exists()
    with pytest.raises(CheckpointError, match="there is a checkpoint, but not the state"):
        scrd_fast.train(images, out, steps=6, resume=True, **OPTIONS)


def test_another_configuration_is_refused_by_the_names_of_its_fields(images, out):
    options = OPTIONS | {"batch_size": 2, "noise": scrd_fast.TrainConfig().noise}
    with pytest.raises(CheckpointError, match=(
            r"got another: batch_size: 4 -> 2, learning_rate: 0\.001 -> 0\.01, "
            r"noise\.max_share: 0\.25 -> 0\.125, noise\.min_side: 4 -> 10, "
            r"noise\.strength: 0\.8 -> 0\.2; resume with")):
        scrd_fast.train(images, out, steps=6, resume=True, learning_rate=0.01, **options)
    config = TrainConfig(steps=6, **{k: v for k, v in OPTIONS.items() if k != "progress"})
    with pytest.raises(CheckpointError, match="got another: processes: 1 -> 2;"):
        Run(out, config, processes=2).resume()


@pytest.mark.slow
def test_a_cosine_schedule_cannot_be_extended(images, tmp_path):
    out = tmp_path / "m.safetensors"
    options = OPTIONS | {"schedule": "cosine"}
    scrd_fast.train(images, out, steps=1, **options)
    with pytest.raises(CheckpointError, match=r"steps: 1 -> 2: .* cosine schedule ends"):
        scrd_fast.train(images, out, steps=2, resume=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["fewer", "contents", "order", "validation"])
def test_other_images_are_refused(images, out, change):
    data, validation, words = {
        "fewer": (images[:-1], None, "data: 24 -> 23"),
        "contents": (np.where(np.arange(24)[:, None, None] == 7, 0, images), None,
                     "data: 24 as before, but others"),
        "order": (images[::-1], None, "data: 24 as before, but others, or in another order"),
        "validation": (images, images[:2], "validation: none -> 2"),
    }[change]
    before = content(out)
    with pytest.raises(CheckpointError, match=f"got others: {words}"):
        scrd_fast.train(data, out, validation=validation, steps=6, resume=True, **OPTIONS)
    assert content(out)[1] == before[1]


@pytest.mark.slow
def test_images_are_known_again_wherever_and_however_they_are_kept(images, out, tmp_path):
    """The run began with an array in memory; now they are files, and then in another folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, image in enumerate(images):
        cv2.imwrite(str(folder / f"{i:02d}.png"), image)
    scrd_fast.train(str(folder), out, steps=4, resume=True, **OPTIONS)
    folder.rename(tmp_path / "moved")
    scrd_fast.train(str(tmp_path / "moved"), out, steps=5, resume=True, **OPTIONS)
    assert steps_done(out) == 5


@pytest.mark.slow
def test_a_state_of_an_earlier_release_is_refused(images, out):
    header, tensors = read_tensors(state_of(out), "training state")
    del header["images"]
    write_tensors(state_of(out), tensors, header)
    with pytest.raises(CheckpointError, match=r"another release .*images.*start anew"):
        scrd_fast.train(images, out, steps=6, resume=True, **OPTIONS)


@pytest.mark.slow
def test_a_state_of_before_there_were_kinds_goes_on(images, out, tmp_path):
    """Of a release whose noise was simplex alone and had no mixture."""
    for path, kind in ((out, "checkpoint"), (state_of(out), "training state")):
        header, tensors = read_tensors(path, kind)
        assert header["training"]["noise"].pop("mixture") == [["simplex", 1.0]]
        assert header["training"].pop("adapt_noise") is False
        write_tensors(path, tensors, header)
    before = content(out)
    scrd_fast.train("gone", out, steps=3, resume=True, **OPTIONS)
    assert content(out) == before  # a finished run stays as it is
    other = replace(SMALL["noise"], mixture=(("blur", 1.0),))
    with pytest.raises(CheckpointError, match=r"got another: noise\.mixture: "
                                              r"\[\['simplex', 1\.0\]\] -> \[\['blur', 1\.0\]\]; "):
        scrd_fast.train(images, out, steps=4, resume=True, **OPTIONS | {"noise": other})
    whole = tmp_path / "whole.safetensors"
    with figures({2: 0.5, 4: 0.9}, [2, 4]):
        scrd_fast.train(images, whole, steps=4, **OPTIONS)
    with figures({4: 0.9}, [4]):
        scrd_fast.train(images, out, steps=4, resume=True, **OPTIONS)
    assert content(out) == content(whole)


@pytest.mark.slow
def test_a_run_with_all_kinds_goes_on_bit_for_bit(images, tmp_path):
    noise = NoiseConfig(min_side=4, max_share=0.25, strength=0.8,
                        mixture=tuple((kind, 1.0) for kind in KINDS))
    options = OPTIONS | {"steps": 4, "noise": noise}
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    scrd_fast.train(images, whole, **options)
    with stopped_in_step(3):
        scrd_fast.train(images, parts, **options)
    scrd_fast.train(images, parts, resume=True, **options)
    assert content(parts) == content(whole)
    assert load_checkpoint(parts).training["noise"]["mixture"] == [[kind, 1.0] for kind in KINDS]


@pytest.mark.slow
def test_a_teacher_is_needed_at_the_beginning_only(images, tmp_path):
    """Its weights are in the state."""
    teacher = scrd_fast.pretrain_teacher(images, tmp_path / "t.safetensors", steps=1, input_size=32,
                                         batch_size=2, progress=False, noise=SMALL["noise"])
    out, options = tmp_path / "m.safetensors", OPTIONS | {"teacher": teacher}
    first = scrd_fast.train(images, out, steps=2, **options)
    teacher.unlink()
    second = scrd_fast.train(images, out, steps=4, resume=True, **options)
    assert second.config.teacher == first.config.teacher == "pretrained for 1 steps on 24 images"
    assert read_header(state_of(out), "training state")["step"] == 4
