"""A plain autoencoder; at 128 px a step takes twice as long as one of the teacher in fp32."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scrd_fast.torch_state import seeded
from scrd_fast.training.schedule import warmup_cosine

CHANNELS = (32, 64, 128, 256)
LATENT = 32  # channels at a sixteenth of the side: an eighth as many numbers as grey pixels


class Autoencoder(nn.Module):
    """(N, 3, S, S) pixels in [0, 1], S a multiple of 16, to the same."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                       nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(CHANNELS[-1], LATENT, 1))
        for before, after in zip((LATENT, *CHANNELS[:0:-1]), CHANNELS[::-1], strict=True):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False),
                       nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(CHANNELS[0], 3, 3, padding=1), nn.Sigmoid()]
        self.layers = nn.Sequential(*layers)

    def forward(self, pixels: Tensor) -> Tensor:
        rebuilt: Tensor = self.layers(pixels)
        return rebuilt


def train_autoencoder(
    pixels: Tensor, *, steps: int, batch_size: int, learning_rate: float, seed: int
) -> Autoencoder:
    """Trained on normal pixels (N, 3, S, S) by AdamW to rebuild them, mean absolute error; in eval
    mode."""
    with seeded(seed):
        model = Autoencoder()
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: warmup_cosine(step, steps))
    order = _order(len(pixels), steps * batch_size, seed).reshape(steps, batch_size)
    for chosen in torch.from_numpy(order):
        clean = pixels[chosen]
        loss = (model(clean) - clean).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return model.eval()


def _order(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """(wanted,) indices of images, epoch after epoch, each shuffled."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    epochs = [rng.permutation(count) for _ in range(-(-wanted // count))]
    return np.concatenate(epochs)[:wanted].astype(np.int64)
