"""Fused convolutions: what one computes, on what sizes, and how PyTorch computes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scrd_fast.graph.tensors import DTYPES, EIGHT_BITS

TYPES = DTYPES | EIGHT_BITS
NAMES = {dtype: name for name, dtype in TYPES.items()}
SQUARE = 2  # pixels a side, of those that a shuffle makes of one


@dataclass(frozen=True)
class Operands:
    """What a fused convolution reads: out = relu(scale * (x * weight) + residual + bias).

    x: (N, C, H, W) and weight (K, C, k, k), channels-last, of one type; bias: (K,); residual: of
    the output's shape, channels-last. Of 8-bit numbers only: scale: (K,), what 1 of x times 1 of
    the weight stands for; residual_scale: (), what 1 of an 8-bit residual stands for; out_factor:
    (), by which the result is multiplied before it is rounded to 8 bits. These and the bias are
    then float32.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None
    residual: Tensor | None = None
    residual_scale: Tensor | None = None
    out_factor: Tensor | None = None


# A way to compute a fused convolution: its output, channels-last like x.
Way = Callable[[Operands], Tensor]


@dataclass(frozen=True)
class Layer:
    """A fused convolution, and the sizes that it runs on.

    images, channels, height, width: of its input; kernel, stride, padding: of both directions;
    reads, writes, residual: types, such as "fp16", the last None without one; shuffle: whether
    outputs, in an order of (row, column, c), become squares of 2 x 2 pixels at the end.
    """

    images: int
    channels: int
    height: int
    width: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    reads: str
    writes: str
    bias: bool
    residual: str | None
    relu: bool
    shuffle: bool

    def output_side(self, side: int) -> int:
        """Rows (or columns) of the convolution, before a shuffle, of so many of the input."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def eight_bits(self) -> bool:
        """Whether it reads 8-bit numbers."""
        return self.reads in EIGHT_BITS

    def draw_operands(self, device: torch.device) -> Operands:
        """Some operands, the same each time; of them outputs are some 1 before they are rounded to
        8 bits."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, like: str = "fp32", factor: float = 1.0) -> Tensor:
            value = factor * torch.randn(shape, generator=generator, device=device)
            value = to_eight_bits(_ones(like) * value, like) if like in EIGHT_BITS else value.to(
                DTYPES[like])
            return value.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else value

        def number(value: float) -> Tensor:
            return torch.tensor(value, device=device)

        norm = (self.channels * self.kernel**2) ** -0.5
        parts, side = (SQUARE**2, SQUARE) if self.shuffle else (1, 1)
        shape = (self.images, self.outputs // parts, side * self.output_side(self.height),
                 side * self.output_side(self.width))
        eight = self.eight_bits
        return Operands(
            normal(self.images, self.channels, self.height, self.width, like=self.reads),
            normal(self.outputs, self.channels, self.kernel, self.kernel, like=self.reads,
                   factor=1.0 if eight else norm),
            normal(self.outputs, like="fp32" if eight else self.reads) if self.bias else None,
            torch.full((self.outputs,), norm / _ones(self.reads)**2, device=device)
            if eight else None,
            normal(*shape, like=self.residual) if self.residual else None,
            number(1 / _ones(self.residual)) if self.residual in EIGHT_BITS else None,
            number(_ones(self.writes)) if self.writes in EIGHT_BITS else None)


def _ones(like: str | None) -> float:
    """The number that stands for 1 in random operands, of which some are too large for 8 bits."""
    return {"int8": 30.0, "fp8": 100.0}.get(like or "", 1.0)


def to_eight_bits(value: Tensor, kind: str) -> Tensor:
    """float32 rounded to the nearest 8-bit numbers of a kind, the largest where it is beyond."""
    if kind == "int8":
        return torch.round(value).clamp(-128, 127).to(torch.int8)
    return value.clamp(-448, 448).to(EIGHT_BITS[kind])


def to_space(x: Tensor) -> Tensor:
    """Channels (row, column, c) of a channels-last tensor to space: whole vectors of c move."""
    n, channels, height, width = x.shape
    c = channels // SQUARE**2
    x = x.permute(0, 2, 3, 1).reshape(n, height, width, SQUARE, SQUARE, c)
    x = x.permute(0, 1, 3, 2, 4, 5).reshape(n, height * SQUARE, width * SQUARE, c)
    return x.permute(0, 3, 1, 2)


def by_vectors(weight: Tensor) -> Tensor:
    """Outputs of a convolution before DepthToSpace: (c, row, column) to (row, column, c)."""
    return weight.unflatten(0, (-1, SQUARE**2)).transpose(0, 1).flatten(0, 1)


def run_in_pytorch(layer: Layer, operands: Operands) -> Tensor:
    """A fused convolution by PyTorch's own calls, of 8-bit numbers in float32."""
    out = (_convolve_eight_bits if layer.eight_bits else _convolve)(layer, operands)
    return to_space(out) if layer.shuffle else out


def _convolve(layer: Layer, o: Operands) -> Tensor:
    stride, padding = [layer.stride] * 2, [layer.padding] * 2
    # cuDNN fuses nothing but what ends with a ReLU and has a bias, and nothing of three channels.
    if layer.relu and o.bias is not None and o.x.is_cuda and layer.channels % 8 == 0:
        if o.residual is None:
            return torch.cudnn_convolution_relu(o.x, o.weight, o.bias, stride, padding, [1, 1], 1)
        return torch.cudnn_convolution_add_relu(o.x, o.weight, o.residual, 1.0, o.bias, stride,
                                                padding, [1, 1], 1)
    out = F.conv2d(o.x, o.weight, o.bias, stride=stride, padding=padding)
    out = out if o.residual is None else out + o.residual
    return torch.relu(out) if layer.relu else out


def _convolve_eight_bits(layer: Layer, o: Operands) -> Tensor:
    assert o.scale is not None
    out = F.conv2d(o.x.float(), o.weight.float(), stride=layer.stride, padding=layer.padding)
    out = out * o.scale[:, None, None]
    if o.residual is not None:
        residual = o.residual.float()
        out = out + (residual if o.residual_scale is None else residual * o.residual_scale)
    out = out if o.bias is None else out + o.bias[:, None, None]
    out = torch.relu(out) if layer.relu else out
    return out.to(DTYPES[layer.writes]) if o.out_factor is None else to_eight_bits(
        out * o.out_factor, layer.writes)
