"""PaDiM and PatchCore on a teacher's features, each in its shortest form, by the papers alone.

Features are the teacher's three scales (N, C_k, S / 4, S / 4), (., S / 8), (., S / 16).
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

REGULARISATION = 0.01  # of PaDiM's covariances
NEIGHBOURS = 9  # of the bank, that PatchCore weighs an image's score by (b of its equation 7)


def stack_scales(features: tuple[Tensor, ...]) -> Tensor:
    """The scales beside each other at the finest one's places: (N, sum of C, h, w). Each coarse
    place goes to all fine ones that it covers (PaDiM, section 3.1)."""
    size = features[0].shape[-2:]
    return torch.cat([F.interpolate(f, size, mode="nearest") for f in features], 1)


class Padim:
    """A Gaussian per place (Defard et al., arXiv 2011.08785, section 3).

    At each place of the features (N, C, h, w) of normal images it keeps the mean and the covariance
    plus 0.01 times the identity, of `count` channels drawn at random once. A place's distance is
    Mahalanobis's.
    """

    def __init__(self, batches: Iterable[Tensor], count: int, seed: int) -> None:
        """batches: (n, C, h, w) float32, two images at least in all; count: at most C."""
        total = 0
        for features in batches:
            if total == 0:
                _, channels, self.h, self.w = features.shape
                draw = torch.randperm(channels, generator=torch.Generator().manual_seed(seed))
                self.channels = draw[:count]
                places = self.h * self.w
                sums = torch.zeros(places, len(self.channels), 1, dtype=torch.float64)
                products = torch.zeros(places, *2 * [len(self.channels)], dtype=torch.float64)
                origin = self._places(features).mean(2, keepdim=True)  # no digits are cancelled
            x = (self._places(features) - origin).double()
            total += len(features)
            sums += x.sum(2, keepdim=True)
            products.baddbmm_(x, x.mT)
        mean = sums / total
        covariance = (products - total * mean @ mean.mT) / (total - 1)
        covariance += REGULARISATION * torch.eye(covariance.shape[-1])
        self.mean = origin + mean.float()
        self.inverse = torch.linalg.inv(covariance).float()

    def _places(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> (h w, count, N): products by place are then fast."""
        return features[:, self.channels].flatten(2).permute(2, 1, 0).contiguous()

    def distances(self, features: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, h, w)."""
        x = self._places(features) - self.mean
        squared = (torch.bmm(self.inverse, x) * x).sum(1)
        return squared.clamp(min=0).sqrt().mT.reshape(-1, self.h, self.w)


def make_patches(features: tuple[Tensor, ...]) -> Tensor:
    """(N, C2 + C3, h, w) of the second and third scale, at the second's places: each is averaged
    over 3 x 3 places, the coarser one is interpolated (PatchCore, section 3.1)."""
    middle, coarse = (F.avg_pool2d(f, 3, stride=1, padding=1) for f in features[1:])
    coarse = F.interpolate(coarse, middle.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([middle, coarse], 1)


def choose_coreset(patches: Tensor, count: int, dimensions: int, seed: int) -> Tensor:
    """Indices (count,) of patches (P, C): the first at random, then each time the one that is
    farthest from all chosen ones, after a random projection to `dimensions` where C is larger
    (PatchCore, algorithm 1)."""
    generator = torch.Generator().manual_seed(seed)
    if patches.shape[1] > dimensions:
        patches = patches @ (torch.randn(patches.shape[1], dimensions, generator=generator)
                             / dimensions**0.5)
    norms = (patches**2).sum(1)
    chosen = torch.randint(len(patches), (1,), generator=generator)
    nearest = torch.full_like(norms, float("inf"))
    found = [chosen]
    for _ in range(count - 1):
        centre = patches[chosen[0]]
        nearest = torch.minimum(nearest, norms - 2 * (patches @ centre) + centre @ centre)
        nearest[chosen] = -float("inf")
        chosen = nearest.argmax()[None]
        found.append(chosen)
    return torch.cat(found)


class PatchCore:
    """A bank of normal patches (Roth et al., arXiv 2106.08265, section 3)."""

    def __init__(self, patches: Tensor, share: float, dimensions: int, seed: int) -> None:
        """patches: (P, C) of normal images, of which the bank keeps `share`, two at least."""
        count = min(len(patches), max(2, round(share * len(patches))))
        self.bank = patches[choose_coreset(patches, count, dimensions, seed)]

    def distances(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Of patches (N, C, h, w): the distance (N, h, w) of each to the bank, and scores (N,)."""
        n, _, h, w = patches.shape
        rows = patches.flatten(2).transpose(1, 2)
        distances, nearest = torch.cdist(rows.flatten(0, 1), self.bank).min(1)
        distances, nearest = distances.reshape(n, h * w), nearest.reshape(n, h * w)
        scores = torch.stack([self._score(*each)
                              for each in zip(rows, distances, nearest, strict=True)])
        return distances.reshape(n, h, w), scores

    def _score(self, rows: Tensor, distances: Tensor, nearest: Tensor) -> Tensor:
        """Equation 7: the largest distance, less where the bank is dense around that patch's
        nearest, m: by 1 - exp(d(m)) / the sum of exp(d) over m and its neighbours in the bank."""
        worst = distances.argmax()
        around = torch.cdist(self.bank[nearest[worst]][None], self.bank)[0]
        near = around.topk(min(NEIGHBOURS, len(self.bank)), largest=False).indices
        to_near = torch.cdist(rows[worst][None], self.bank[near])[0]
        return (1 - torch.softmax(to_near, 0)[0]) * distances[worst]
