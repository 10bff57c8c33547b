"""Residual blocks and stages shared by teacher, bottleneck and student.

The student is the teacher mirrored, so one block serves all three: `resample` says whether its
first spatial convolution keeps the resolution, halves it (stride 2) or doubles it (a transposed
convolution with kernel 2 and stride 2). Block structure: He et al. 2016 (arXiv 1512.03385), wide
variant Zagoruyko and Komodakis 2016 (arXiv 1605.07146), mirrored Deng and Li 2022
(arXiv 2201.10703).
"""

from copy import deepcopy
from itertools import pairwise
from typing import Literal, TypeVar

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scrd_fast.model.backbones import Backbone

Resample = Literal["keep", "down", "up"]
_Module = TypeVar("_Module", bound=nn.Module)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def _spatial(inputs: int, outputs: int, resample: Resample) -> nn.Module:
    if resample == "up":
        return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    return conv3x3(inputs, outputs, stride=2 if resample == "down" else 1)


def _shortcut(inputs: int, outputs: int, resample: Resample) -> nn.Sequential | None:
    if resample == "keep" and inputs == outputs:
        return None
    if resample == "up":
        conv: nn.Module = nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False)
    else:
        conv = conv1x1(inputs, outputs, stride=2 if resample == "down" else 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """Two spatial convolutions; the first one resamples."""

    def __init__(self, inputs: int, planes: int, backbone: Backbone, resample: Resample) -> None:
        super().__init__()
        self.conv1 = _spatial(inputs, planes, resample)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(inputs, planes, resample)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y.add_(x if self.shortcut is None else self.shortcut(x)))


class BottleneckBlock(nn.Module):
    """1x1, spatial, 1x1 convolutions; the spatial one resamples."""

    def __init__(self, inputs: int, planes: int, backbone: Backbone, resample: Resample) -> None:
        super().__init__()
        width, outputs = planes * backbone.width, planes * backbone.expansion
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _spatial(width, width, resample)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv1x1(width, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = _shortcut(inputs, outputs, resample)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y.add_(x if self.shortcut is None else self.shortcut(x)))


def make_stage(
    inputs: int, planes: int, blocks: int, backbone: Backbone, resample: Resample
) -> nn.Sequential:
    """`blocks` residual blocks, the first one resampling; (N, inputs, H, W) in."""
    block = BasicBlock if backbone.block == "basic" else BottleneckBlock
    outputs = planes * backbone.expansion
    return nn.Sequential(
        block(inputs, planes, backbone, resample),
        *(block(outputs, planes, backbone, "keep") for _ in range(blocks - 1)),
    )


def init_weights(module: nn.Module) -> None:
    """He initialisation (fan out) of convolutions, zeros for their biases, ones and zeros for
    BatchNorm.

    On the meta device, where there is nothing to set, it would make PyTorch load its compiler: of
    the 1.1 s that a checkpoint took to load these were 0.8.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d) and not part.weight.is_meta:
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def fold_batchnorms(module: _Module) -> _Module:
    """A copy of a module in eval mode with every BatchNorm inside of the convolution before it."""
    folded = deepcopy(module)
    for part in list(folded.modules()):
        for (name, conv), (bn_name, bn) in pairwise(list(part.named_children())):
            if isinstance(bn, nn.BatchNorm2d):
                assert isinstance(conv, nn.Conv2d | nn.ConvTranspose2d)
                transposed = isinstance(conv, nn.ConvTranspose2d)
                setattr(part, name, fuse_conv_bn_eval(conv, bn, transpose=transposed))
                setattr(part, bn_name, nn.Identity())
    return folded
