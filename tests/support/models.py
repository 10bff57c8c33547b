"""Small and large checkpoints for the engine tests."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import scrd_fast
from scrd_fast.backends.registry import backend_of
from scrd_fast.building.judge import Probe, make_probe
from scrd_fast.graph.portable import SPEC_KEY
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.golden import trained_resnet18
from tests.support.gpu import ON_GPU
from tests.support.once import made_once
from tests.support.published import published_model


def needs(backend: str) -> list[pytest.MarkDecorator]:
    """Marks of a test on a GPU and this backend."""
    # Where there is no GPU its library, which may be large, is not loaded to hear that.
    missing = backend_of(backend).missing() if torch.cuda.is_available() else None
    return [*ON_GPU, pytest.mark.skipif(missing is not None, reason=f"{backend}: {missing}")]


EACH_BACKEND = ("openvino", "torch_eager", *(
    pytest.param(name, marks=needs(name)) for name in ("torch_cuda", "tensorrt", "tensorrt_rtx")))


@pytest.fixture(autouse=True, scope="session")
def state_of_its_own(tmp_path_factory):
    """What a user built is recorded per user; a test run is another one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


def pictures(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Smooth uint8 images (count, side, side, 3) with texture."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count, 3, 9, 9)))
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 8, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


@pytest.fixture(scope="session")
def small():
    """An untrained resnet18 at 64 px that weights scales and reduces by the maximum."""
    torch.manual_seed(3)
    spec = ScoringSpec(input_size=64, weighting="scale", blur_sigma=1.5, reduction="max")
    return Checkpoint(SCRD("resnet18").eval(), spec, ModelConfig("resnet18", "random"))


@pytest.fixture(scope="session")
def small_path(small, tmp_path_factory):
    folder = made_once(tmp_path_factory, "small", lambda folder: save_checkpoint(
        small, folder / "model.safetensors"))
    return folder / "model.safetensors"


@pytest.fixture(scope="session")
def small_file(small_path, tmp_path_factory):
    """Its engine file: fp32, on the CPU."""
    folder = made_once(tmp_path_factory, "small_file", lambda folder: scrd_fast.build_engine(
        small_path, folder / "m.scrd", device="cpu", precision="fp32", buckets=(1,)).close())
    return folder / "m.scrd"


@pytest.fixture(scope="session")
def small_files(small_path, tmp_path_factory) -> Callable[[str], Path]:
    """Its engine file for a backend: fp32, for batches of 1 and of 4."""
    def file_of(backend: str) -> Path:
        folder = made_once(tmp_path_factory, f"small_{backend}", lambda folder: (
            scrd_fast.build_engine(small_path, folder / "m.scrd", backend=backend,
                                   precision="fp32", buckets=(1, 4)).close()))
        return folder / "m.scrd"

    return file_of


@pytest.fixture(scope="session")
def large():
    """Wide-ResNet-50-2 at 64 px with the recorded weights. (At 256 px: tests/model, and the
    benchmarks, which hold every precision against the published loop.)"""
    config = ModelConfig("wide_resnet50_2", "recorded")
    return Checkpoint(published_model(), ScoringSpec(input_size=64, weighting="scale"), config)


@pytest.fixture(scope="session")
def large_path(large, tmp_path_factory):
    return save_checkpoint(large, tmp_path_factory.mktemp("large") / "model.safetensors")


def organs(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Grey uint8 images (count, side, side): a body of varying shape and texture, dark inside."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) / side - 0.5
    left, top = rng.normal(0, 0.03, (2, count, 1, 1))
    width, height = rng.uniform(0.28, 0.4, (2, count, 1, 1))
    x, y = x - left, y - top
    body = 1 / (1 + np.exp(12 * ((x / width) ** 2 + (y / height) ** 2 - 1)))
    coarse = torch.from_numpy(rng.normal(0, 1, (count, 1, 9, 9)))
    texture = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").numpy()[:, 0]
    inside = np.exp(-((x / 0.12) ** 2 + (y / 0.08) ** 2))
    image = 20 + body * (120 + 18 * texture - 70 * inside) + rng.normal(0, 4, (count, side, side))
    return np.clip(image, 0, 255).astype(np.uint8)


# Left unquantised where the search for layers is not what is tested: 0.2 % of decisions flip.
KEEPS_THE_LIMITS = ("network/teacher", "network/bottleneck.")


@pytest.fixture(scope="session")
def trained() -> tuple[Checkpoint, np.ndarray]:
    """A resnet18 at 64 px whose training was recorded, and its normal images: an untrained network
    has scores that no 8 bits can rank, and one trained here would be another on each machine."""
    config = ModelConfig("resnet18", "random")
    return Checkpoint(trained_resnet18.recorded(), trained_resnet18.SPEC, config), organs(160, 64)


@pytest.fixture(scope="session")
def probe(trained) -> Probe:
    """Other normal images than those of the training, and the same with anomalies."""
    checkpoint, _ = trained
    return make_probe(checkpoint.spec, organs(120, 64, seed=5), 240)


def read_spec(proto: onnx.ModelProto) -> ScoringSpec:
    """The ScoringSpec in a graph's metadata; raises KeyError where there is none."""
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return ScoringSpec.from_dict(json.loads(metadata[SPEC_KEY]))
