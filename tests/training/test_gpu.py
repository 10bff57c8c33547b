"""Training on a CUDA device: the numbers of the CPU, errors by step, no waiting."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import KINDS, NoiseConfig
from scrd_fast.errors import ScrdError
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from scrd_fast.torch_state import exact_convolutions
from scrd_fast.training.batches import Batches
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.trainer import Trainer
from tests.support.gpu import ON_GPU

pytestmark = ON_GPU
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
IMAGES = np.random.default_rng(0).integers(0, 256, (24, 70, 70)).astype(np.uint8)
NOISE = NoiseConfig(min_side=6, max_share=0.5, strength=0.8)
SMALL = {"backbone": "resnet18", "teacher": "random", "input_size": 64, "batch_size": 4,
         "noise": NOISE, "learning_rate": 1e-4}


@pytest.fixture
def no_tf32() -> Iterator[None]:
    """Convolutions in float32, as on the CPU."""
    with exact_convolutions:
        yield


def batches(device: torch.device, noise: NoiseConfig = NOISE, steps: int = 4) -> Batches:
    return Batches(ImageSet(IMAGES), np.arange(len(IMAGES)), ScoringSpec(input_size=64), noise, 3,
                   4, steps, ahead=device.type == "cuda", device=device)


def trainer(device: torch.device, **more) -> Trainer:
    torch.manual_seed(0)
    return Trainer(TrainConfig(**SMALL | more), SCRD("resnet18"), device)


def losses(given: Trainer) -> list[float]:
    figures = [given.step(i, *batch) for i, batch in enumerate(batches(given.device))]
    return [f["loss"] for f in figures]


@pytest.mark.parametrize("channels", ["independent", "shared"])
def test_the_same_images_as_on_the_cpu(channels):
    noise = NoiseConfig(min_side=6, max_share=0.5, strength=0.8, channels=channels)
    for here, there in zip(batches(CPU, noise), batches(CUDA, noise), strict=True):
        for expected, got in zip(here, there, strict=True):
            assert got.device == CUDA
            assert float((got.cpu() - expected).abs().max()) <= 1e-5


def test_all_kinds_are_the_same_as_on_the_cpu():
    """Where pixels are sampled between others, rounding of their places counts."""
    noise = NoiseConfig(min_side=6, max_share=0.5, strength=0.8, channels="shared",
                        mixture=tuple((kind, 1.0) for kind in KINDS))
    for here, there in zip(batches(CPU, noise, 12), batches(CUDA, noise, 12), strict=True):
        for expected, got in zip(here, there, strict=True):
            assert float((got.cpu() - expected).abs().max()) <= 1e-4


@pytest.mark.parametrize("weighting", ["none", "scale"])
def test_the_loss_curve_of_the_cpu(no_tf32, weighting):
    here, there = (losses(trainer(device, weighting=weighting)) for device in (CPU, CUDA))
    assert len({f"{loss:.3f}" for loss in here}) > 2  # the steps do something
    assert there == pytest.approx(here, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_follows(precision):
    ours, expected = losses(trainer(CUDA, precision=precision)), losses(trainer(CUDA))
    # The gradient scaler of fp16 leaves out the first steps, until its scale fits.
    compared = slice(None) if precision == "bf16" else slice(1)
    assert ours[compared] == pytest.approx(expected[compared], rel=0.02)
    assert np.isfinite(ours).all()


def test_a_resumed_trainer_continues(no_tf32):
    """Its optimiser's state comes back from the CPU, as from a file."""
    first = trainer(CUDA)
    made = list(batches(CUDA, steps=5))
    for i in range(3):
        first.step(i, *made[i])
    state = {name: value.detach().cpu() for name, value in first.state().items()}
    second = trainer(CUDA)
    second.load_state(state, "state")
    for i in (3, 4):
        assert second.step(i, *made[i])["loss"] == pytest.approx(
            first.step(i, *made[i])["loss"], rel=1e-4)


def test_a_loss_that_is_not_finite_is_one_error_and_no_checkpoint(tmp_path):
    out = tmp_path / "m.safetensors"
    options = SMALL | {"learning_rate": 1e30, "steps": 4, "progress": False}
    with pytest.raises(ScrdError, match=r"loss is nan at step \d.*learning_rate"):
        scrd_fast.train(IMAGES, out, device="cuda", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_step_waits_for_nothing():
    """Once the kernels are tuned; PyTorch raises where it would wait for the device."""
    given = trainer(CUDA, weighting="scale", precision="bf16")
    made = list(batches(CUDA, steps=3))
    given.step(0, *made[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        figures = [given.step(i, *made[i]) for i in (1, 2)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [f.step for f in figures] == [1, 2]
    assert all(np.isfinite(f["loss"]) for f in figures)


def test_a_whole_run(tmp_path):
    options = SMALL | {"steps": 5, "validate_every": 2, "progress": False, "precision": "bf16"}
    checkpoint = scrd_fast.train(IMAGES, tmp_path / "m.safetensors", device="cuda", **options)
    assert [entry["step"] for entry in checkpoint.metrics["history"]] == [2, 4, 5]
