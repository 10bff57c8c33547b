"""Makes trained_resnet18.safetensors: python -m tests.golden.trained_resnet18 (some minutes).

A small model that is trained once and recorded, for what is judged by its scores: two machines
never train the same one. To keep the file small only what lies outside the convolutions of the
teacher and of the bottleneck's blocks is trained and recorded, in half precision; the rest is drawn
from the seed.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.model.scrd import SCRD
from scrd_fast.torch_state import seeded
from scrd_fast.training.batches import Batches
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.evaluation import normal_validation
from scrd_fast.training.trainer import Trainer

PATH = Path(__file__).with_suffix(".safetensors")
CONFIG = TrainConfig(
    backbone="resnet18", teacher="random", input_size=64, weighting="scale", steps=800,
    batch_size=16, schedule="cosine",
    noise=NoiseConfig(strength=0.5, min_side=6, max_share=0.25, channels="shared"))
SPEC = CONFIG.spec()


def _is_recorded(name: str) -> bool:
    return not (name.startswith(("teacher.", "bottleneck.blocks."))
                and name.endswith(("conv1.weight", "conv2.weight", "conv3.weight",
                                   "shortcut.0.weight")))


def initial() -> SCRD:
    """The model before its training."""
    with seeded(3):
        return SCRD("resnet18")


def recorded() -> SCRD:
    """The model as it was recorded, in eval mode."""
    model = initial()
    values = {name: v if v.dtype == torch.int64 else v.float()
              for name, v in load_file(PATH).items()}
    state = model.state_dict()
    assert set(values) == {name for name in state if _is_recorded(name)}
    model.load_state_dict(state | values)
    return model.eval()


def main() -> None:
    from tests.support.models import organs

    model = initial()
    model.bottleneck.blocks.requires_grad_(False)
    for module in model.bottleneck.blocks.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.requires_grad_(True)
    images = ImageSet(organs(160, 64))
    trainer = Trainer(CONFIG, model, torch.device("cpu"))
    batches = Batches(images, np.arange(len(images)), SPEC, CONFIG.noise, CONFIG.seed,
                      CONFIG.batch_size, CONFIG.steps)
    judge = normal_validation(ImageSet(organs(60, 64, seed=9)), np.arange(60), SPEC,
                              CONFIG.noise, CONFIG.seed)
    for step, (clean, noisy) in enumerate(batches):
        figures = trainer.step(step, clean, noisy)
        if (step + 1) % 100 == 0:
            print(step + 1, dict(figures), judge.auroc(model, SPEC), flush=True)
    kept = {name: v.half() if v.is_floating_point() else v
            for name, v in model.state_dict().items() if _is_recorded(name)}
    save_file({name: v.contiguous() for name, v in kept.items()}, PATH)


if __name__ == "__main__":
    main()
