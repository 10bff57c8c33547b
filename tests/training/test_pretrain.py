"""Teacher pre-training."""

import numpy as np
import pytest

import scrd_fast
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import CheckpointError, InputError
from scrd_fast.model.checkpoint import read_tensors
from scrd_fast.training.batches import Batches

SMALL = {"input_size": 32, "batch_size": 4, "progress": False,
         "noise": NoiseConfig(strength=0.8, min_side=8, max_share=0.5, channels="shared")}


@pytest.mark.slow
def test_teacher_file_is_what_train_takes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 40, 40), dtype=np.uint8)
    teacher = scrd_fast.pretrain_teacher(images, tmp_path / "t.safetensors", steps=3, **SMALL)
    header, tensors = read_tensors(teacher, "teacher")
    assert header["backbone"] == "resnet18"
    checkpoint = scrd_fast.train(images, tmp_path / "m.safetensors", teacher=str(teacher),
                                 backbone="resnet18", input_size=32, steps=1, batch_size=4,
                                 progress=False,
                                 noise=NoiseConfig(min_side=4, max_share=0.25))
    assert "3 steps on 12 images" in checkpoint.config.teacher
    for name, value in checkpoint.model.teacher.state_dict().items():
        assert np.array_equal(value, tensors[name]), name
    with pytest.raises(CheckpointError, match="expected a teacher of resnet34, got resnet18"):
        scrd_fast.train(images, tmp_path / "n.safetensors", teacher=str(teacher),
                        backbone="resnet34", input_size=32, steps=1, progress=False,
                        noise=NoiseConfig(min_side=4, max_share=0.25))
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        scrd_fast.build_engine(teacher)


def test_bad_arguments(tmp_path):
    with pytest.raises(InputError, match="steps"):
        scrd_fast.pretrain_teacher(np.zeros((2, 32, 32), np.uint8), tmp_path / "t.safetensors",
                                   steps=0, **SMALL)
    with pytest.raises(InputError, match="data"):
        scrd_fast.pretrain_teacher([], tmp_path / "t.safetensors", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_coarse_steps(tmp_path, monkeypatch):
    """The first steps see half the pixels and half the noise's lengths, the others all of them."""
    seen = []
    original = Batches._read

    def reading(self, step):
        clean, *more = original(self, step)
        seen.append((step, clean.shape[-1], self.noise.min_side, self.noise.wavelength))
        return clean, *more

    monkeypatch.setattr(Batches, "_read", reading)
    images = np.random.default_rng(0).integers(0, 256, (12, 64, 64), dtype=np.uint8)
    options = SMALL | {"input_size": 64, "steps": 3, "coarse_steps": 2}
    teacher = scrd_fast.pretrain_teacher(images, tmp_path / "t.safetensors", **options)
    assert seen == [(0, 32, 4, 16.0), (1, 32, 4, 16.0), (2, 64, 8, 32.0)]
    assert read_tensors(teacher, "teacher")[0]["training"]["coarse_steps"] == 2


@pytest.mark.parametrize(("options", "message"), [
    ({"coarse_steps": 4, "steps": 3}, "coarse_steps: expected from 0 to steps, 3, got 4"),
    ({"coarse_steps": 1, "input_size": 96}, "input_size: expected a multiple of 64")])
def test_bad_coarse_steps(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        scrd_fast.pretrain_teacher(np.zeros((2, 32, 32), np.uint8), tmp_path / "t.safetensors",
                                   **options)


def test_bad_images_are_found_at_once_or_left_out(tmp_path):
    images = [np.full((40, 40), i, np.uint8) for i in range(5)]
    images[2] = images[2][:0]
    with pytest.raises(InputError, match=r"^data: 1 of 5 images .*data\[2\]: expected"):
        scrd_fast.pretrain_teacher(images, tmp_path / "t.safetensors", steps=1, **SMALL)
    assert list(tmp_path.iterdir()) == []
    with pytest.warns(UserWarning, match="left out"):
        path = scrd_fast.pretrain_teacher(images, tmp_path / "t.safetensors", steps=1,
                                          skip_bad=True, **SMALL | {"batch_size": 1})
    assert read_tensors(path, "teacher")[0]["teacher"] == "pretrained for 1 steps on 4 images"
