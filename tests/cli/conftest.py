"""What the verbs work on."""


import cv2
import numpy as np
import pytest
import torch

from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.cli.commands import run
from tests.support.once import made_once


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A checkpoint, its engine, and a folder of images of which one is damaged."""
    return made_once(tmp_path_factory, "cli", make_folder)


def make_folder(root):
    torch.manual_seed(0)
    spec = ScoringSpec(input_size=64, blur_sigma=1.0)
    save_checkpoint(Checkpoint(SCRD("resnet18"), spec, ModelConfig("resnet18", "random")),
                    root / "model.safetensors")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        cv2.imwrite(str(root / "images" / f"{i}.png"), rng.integers(0, 256, (50, 70), np.uint8))
    whole = (root / "images" / "0.png").read_bytes()
    (root / "images" / "broken.png").write_bytes(whole[: len(whole) // 2])
    done = run("build", root / "model.safetensors", "--precision", "fp32", "--quiet")
    assert done.returncode == 0, done.stderr
