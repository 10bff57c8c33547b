"""Small and large checkpoints for the engine tests."""

import numpy as np
import pytest
import torch

from scrd_fast.engine.backends.choice import tensorrt_missing
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.published import published_model

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
on_gpu = (pytest.mark.gpu, needs_gpu)
needs_tensorrt = pytest.mark.skipif(tensorrt_missing() is not None,
                                    reason=f"TensorRT: {tensorrt_missing()}")
EACH_BACKEND = ("openvino", "torch_eager", pytest.param("torch_cuda", marks=on_gpu),
                pytest.param("tensorrt", marks=(*on_gpu, needs_tensorrt)))


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
    return save_checkpoint(small, tmp_path_factory.mktemp("small") / "model.safetensors")


@pytest.fixture(scope="session")
def large():
    """Wide-ResNet-50-2 at 256 px with the recorded weights."""
    config = ModelConfig("wide_resnet50_2", "recorded")
    return Checkpoint(published_model(), ScoringSpec(weighting="scale"), config)


@pytest.fixture(scope="session")
def large_path(large, tmp_path_factory):
    return save_checkpoint(large, tmp_path_factory.mktemp("large") / "model.safetensors")
