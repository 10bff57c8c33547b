"""Training: processes, weighting, selection, images, and what the file holds."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.errors import BackendUnavailable, CheckpointError, InputError, ScrdError
from scrd_fast.model import teacher_weights
from scrd_fast.model.checkpoint import load_checkpoint, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.training import loop
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.trainer import Trainer
from tests.training.small import SMALL, assert_same, tensors

ROOT = Path(__file__).parents[2]


def test_same_seed_same_model_other_seed_other_model(images, tmp_path):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        scrd_fast.train(images, tmp_path / f"{name}.safetensors", steps=2, seed=seed, **SMALL)
        runs[name] = tensors(tmp_path / f"{name}.safetensors")
    assert_same(runs["a"], runs["b"])
    assert not torch.equal(runs["a"]["student.layer3.1.conv2.weight"],
                           runs["c"]["student.layer3.1.conv2.weight"])


@pytest.mark.slow
def test_checkpoint_says_how_it_was_made(images, tmp_path):
    path = tmp_path / "m.safetensors"
    scrd_fast.train(images, path, steps=3, validate_every=2, weighting="scale", reduction="max",
                    blur_sigma=1.0, **SMALL)
    checkpoint = load_checkpoint(path)
    assert checkpoint.spec.weighting == "scale"
    assert checkpoint.spec.reduction == "max"
    assert checkpoint.training["noise"]["strength"] == 0.8
    assert 0 <= checkpoint.metrics["auroc_synthesised"] <= 1
    assert sum(checkpoint.metrics["images"].values()) == len(images)
    entry = checkpoint.metrics["history"][0]
    assert entry["step"] == 2
    assert sum(entry["weights"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_an_engine_says_how_its_model_was_trained(images, tmp_path):
    path = tmp_path / "m.safetensors"
    scrd_fast.train(images, path, steps=1, **SMALL)
    checkpoint = load_checkpoint(path)
    with scrd_fast.build_engine(path, device="cpu", precision="fp32", buckets=(1,)) as engine:
        training = engine.manifest.training
        assert training.options["steps"] == 1
        assert training.options["noise.strength"] == checkpoint.training["noise"]["strength"]
        assert training.options["betas"] == "0.5, 0.999"
        assert training.images == checkpoint.metrics["images"]
        assert training.figures == {"auroc_synthesised": checkpoint.metrics["auroc_synthesised"]}
    save_checkpoint(replace(checkpoint, training={}), path)  # as of an imported model
    with scrd_fast.build_engine(path, device="cpu", precision="fp32", buckets=(1,)) as engine:
        assert engine.manifest.training is None


def test_training_lowers_the_loss_and_leaves_the_teacher(images, tmp_path):
    torch.manual_seed(0)
    model = SCRD("resnet18")
    before = {n: v.clone() for n, v in model.teacher.state_dict().items()}
    trainer = Trainer(TrainConfig(**{k: v for k, v in SMALL.items() if k != "progress"}), model,
                      torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(4, 3, 32, 32, generator=generator)
    noisy = clean + 0.3 * torch.rand(4, 3, 32, 32, generator=generator)
    losses = [trainer.step(i, clean, noisy)["loss"] for i in range(6)]
    assert losses[-1] < 0.9 * losses[0]
    assert_same(before, model.teacher.state_dict())


@pytest.mark.slow
def test_barrier_keeps_the_scale_weights_apart_from_collapse():
    """Minimising the weighted ratio alone drives the weights to one scale; the barrier does not."""
    def smallest_weight(barrier: float) -> float:
        torch.manual_seed(0)
        config = TrainConfig(backbone="resnet18", teacher="random", input_size=32,
                             weighting="scale", weight_barrier=barrier)
        trainer = Trainer(config, SCRD("resnet18"), torch.device("cpu"))
        generator = torch.Generator().manual_seed(1)
        for step in range(30):
            clean = torch.rand(4, 3, 32, 32, generator=generator)
            noisy = clean.clone()
            noisy[:, :, 8:20, 8:20] += 0.5
            figures = trainer.step(step, clean, noisy)
        return min(figures["weights"])

    assert smallest_weight(0.0) < 0.01
    assert smallest_weight(1.0) > 0.1


@pytest.mark.slow
def test_published_batchnorm_moves_only_the_statistics():
    torch.manual_seed(0)
    state = SCRD("resnet18").state_dict()
    after = {}
    for published in (False, True):
        model = SCRD("resnet18")
        model.load_state_dict(state)
        config = TrainConfig(backbone="resnet18", teacher="random", input_size=32,
                             published_batchnorm=published)
        generator = torch.Generator().manual_seed(0)
        clean, noisy = torch.rand(2, 4, 3, 32, 32, generator=generator)
        Trainer(config, model, torch.device("cpu")).step(0, clean, noisy)
        after[published] = model.state_dict()
    for name, value in after[False].items():
        moved = not torch.equal(value, after[True][name])
        assert moved == (".running_" in name or "num_batches" in name) or "teacher" in name, name


@pytest.mark.slow
def test_published_selection_needs_and_names_the_test_set(images, tmp_path):
    labels = np.arange(8) % 2
    checkpoint = scrd_fast.train(images, tmp_path / "m.safetensors", steps=2,
                                 test=(images[:8], labels), selection="published_test", **SMALL)
    assert "auroc_test_used_for_selection" in checkpoint.metrics
    with pytest.raises(InputError, match="test: expected labelled images"):
        scrd_fast.train(images, tmp_path / "n.safetensors", steps=2, selection="published_test",
                        **SMALL)
    with pytest.raises(InputError, match="test labels"):
        scrd_fast.train(images, tmp_path / "n.safetensors", steps=2, test=(images[:8], labels * 0),
                        selection="published_test", **SMALL)


@pytest.mark.slow
def test_tensorboard_scalars(images, tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs the tensorboard extra")
    scrd_fast.train(images, tmp_path / "m.safetensors", steps=3, tensorboard=tmp_path / "tb",
                    **SMALL)
    events = event_accumulator.EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    names = set(events.Tags()["scalars"])
    assert {"loss", "scale_weight/1", "images_per_s", "auroc_synthesised"} <= names
    assert len(events.Scalars("loss")) == 3


@pytest.mark.slow
def test_missing_imagenet_weights_say_which_file(images, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    options = SMALL | {"teacher": "imagenet", "backbone": "wide_resnet50_2"}
    with pytest.raises(BackendUnavailable, match=r"wide_resnet50_2-95faca4d\.pth"):
        scrd_fast.train(images, tmp_path / "m.safetensors", steps=1, **options)
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not it")
    with pytest.raises(CheckpointError, match=r"resnet18-f37072fd\.pth.*got"):
        scrd_fast.train(images, tmp_path / "m.safetensors", steps=1,
                        **SMALL | {"teacher": str(wrong)})


def test_bad_configuration(images, tmp_path):
    out = tmp_path / "m.safetensors"
    for field, value in (("steps", 0), ("schedule", "linear"), ("weighting", "both"),
                         ("precision", "int8"), ("backbone", "vgg16"), ("input_size", 100),
                         ("noise", {"strength": 1}), ("stepz", 3), ("steps", 1.5), ("seed", -1),
                         ("batch_size", True), ("validation_share", 1.0),
                         ("learning_rate", np.float32(1e-3))):
        words = "float32" if field == "learning_rate" else field
        with pytest.raises(InputError, match=words):
            scrd_fast.train(images, out, **SMALL | {"steps": 1} | {field: value})
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_is_one_clear_error(images, tmp_path):
    with pytest.raises(ScrdError, match=r"loss is nan at step \d.*learning_rate"):
        scrd_fast.train(images, tmp_path / "m.safetensors", steps=4, learning_rate=1e30, **SMALL)


def test_torchvision_file_fills_the_teacher(tmp_path, monkeypatch):
    """The format of torchvision's file; its real digest is replaced by that of this one."""
    source, model = SCRD("resnet18").teacher, SCRD("resnet18")
    state = {n.replace("shortcut.", "downsample."): v for n, v in source.state_dict().items()
             if not n.endswith("num_batches_tracked")}
    path = tmp_path / "resnet18.pth"
    torch.save(state | {"fc.weight": torch.zeros(3, 3), "layer4.0.conv1.weight": torch.ones(1)},
               path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setitem(teacher_weights.IMAGENET_DIGESTS, "resnet18", digest)
    assert teacher_weights.load_teacher(model, path) == "imagenet"
    assert_same(source.state_dict(), model.teacher.state_dict())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "hub" / "checkpoints" / f"resnet18-{digest}.pth"
    cached.parent.mkdir(parents=True)
    path.rename(cached)
    assert teacher_weights.load_teacher(SCRD("resnet18"), "imagenet") == "imagenet"


@pytest.mark.slow
def test_two_processes_train_one_model(images, tmp_path):
    """torchrun with gloo: both processes finish, one file is written, and it is a good one."""
    np.save(tmp_path / "images.npy", images)
    script = tmp_path / "run.py"
    script.write_text(f"""
import os
import numpy as np, torch, torch.distributed as dist
import scrd_fast
from scrd_fast.training import loop
from scrd_fast.data.noise_config import NoiseConfig
torch.set_num_threads(1)
seen = []
original = loop.Trainer.update
def update(self, *arguments):
    figures = original(self, *arguments)
    seen.append(torch.cat([p.detach().flatten() for p in self.parameters.values()]).clone())
    return figures
loop.Trainer.update = update
dist.init_process_group("gloo")
scrd_fast.train(np.load({str(tmp_path / "images.npy")!r}), {str(tmp_path / "m.safetensors")!r},
    backbone="resnet18", teacher="random", input_size=32, batch_size=2, progress=False, steps=3,
    noise=NoiseConfig(min_side=4, max_share=0.25))
for mine in seen:
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(both[0], both[1])
os.write(1, b"parameters agree %d\\n" % len(seen))  # at once: two processes write
loop.leave_process_group()
""")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script)],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("parameters agree 3") == 2
    assert load_checkpoint(tmp_path / "m.safetensors").config.backbone == "resnet18"


class TeacherError(Exception):
    """The teacher was loaded."""


def test_bad_arguments_and_images_are_found_before_the_teacher_is_loaded(
        images, tmp_path, monkeypatch):
    def load(*_):
        raise TeacherError

    monkeypatch.setattr(loop, "load_teacher", load)
    out, bad = tmp_path / "m.safetensors", list(images)
    bad[20] = bad[20][:, :0]
    arrays = {"data": (bad, {}), "validation": (images, {"validation": bad}), "test": (
        images, {"test": (bad, np.arange(24) % 2), "selection": "published_test"})}
    for name, (data, more) in arrays.items():
        with pytest.raises(InputError, match=rf"^{name}: 1 of 24 images .*{name}\[20\]: expected"):
            scrd_fast.train(data, out, **SMALL, **more)
        with pytest.warns(UserWarning, match="left out"), pytest.raises(TeacherError):
            scrd_fast.train(data, out, skip_bad=True, **SMALL, **more)
    with pytest.raises(InputError, match=r"^batch_size: expected at least 2 at an input_size of 32,"
                                         r" or a larger input_size, got 1"):
        scrd_fast.train(images, out, **SMALL | {"batch_size": 1})
    with pytest.raises(InputError, match="data: expected images of at least two patients"):
        scrd_fast.train(images[:1], out, **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("count", "size", "batch"), [(5, 32, 4), (1, 32, 4), (3, 64, 1)])
def test_any_number_of_images_trains(images, tmp_path, count, size, batch):
    """A batch goes on with the next epoch where one ends: none is smaller than the others."""
    scrd_fast.train(images[:count], tmp_path / "m.safetensors", validation=images[-2:], steps=3,
                    **SMALL | {"input_size": size, "batch_size": batch})
    assert tensors(tmp_path / "m.safetensors")


@pytest.mark.slow
def test_labels_follow_the_images_that_stay(images, tmp_path):
    """Both that are left out are the anomalous ones before the last."""
    labels, bad = np.array([0, 1, 0, 1, 1]), list(images[:5])
    bad[1] = bad[3] = np.zeros(3, np.uint8)
    paths = tmp_path / "bad.safetensors", tmp_path / "good.safetensors"
    options = SMALL | {"steps": 1, "selection": "published_test"}
    with pytest.warns(UserWarning, match="test: 2 of 5"):
        first = scrd_fast.train(images, paths[0], test=(bad, labels), skip_bad=True, **options)
    kept = [0, 2, 4]
    second = scrd_fast.train(images, paths[1], test=(images[kept], labels[kept]), **options)
    assert first.metrics == second.metrics
