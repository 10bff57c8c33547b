"""The kernel of 1 x 1 convolutions against PyTorch's own operators in float64."""

import pytest
import torch
import torch.nn.functional as F

from scrd_fast.backends.layers import by_vectors
from scrd_fast.kernels.pointwise import pointwise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EPSILON = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}

pytestmark = pytest.mark.gpu


def operands(shape, outputs, dtype, seed=0):
    """x (N, C, H, W), weight (K, C, 1, 1) and bias (K,), of a dtype's numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(outputs, shape[1], 1, 1, generator=generator) / shape[1] ** 0.5
    bias = torch.randn(outputs, generator=generator)
    return [each.to(dtype).to(DEVICE) for each in (
        x.contiguous(memory_format=torch.channels_last), weight, bias)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, pytest.param(
    torch.bfloat16, marks=pytest.mark.skipif(
        DEVICE == "cpu", reason="Triton's interpreter multiplies bfloat16's bits, not its"
        " numbers: needs a CUDA device"))], ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize(("shape", "outputs", "step", "shuffle"), [
    ((2, 64, 8, 8), 64, 1, False), ((1, 24, 7, 5), 40, 1, False), ((2, 40, 9, 6), 72, 2, False),
    ((2, 64, 4, 4), 64, 1, True), ((3, 24, 3, 5), 40, 1, True)], ids=str)
def test_against_pytorch(shape, outputs, step, shuffle, residual, relu, dtype):
    """Sizes that fill no tile; rounded once, so within one rounding of the exact sum."""
    x, weight, bias = operands(shape, outputs, dtype)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), stride=step)
    if shuffle:
        exact = F.pixel_shuffle(exact, 2)
        weight, bias = by_vectors(weight), by_vectors(bias)
    other = None
    if residual:
        other = torch.randn(exact.shape, generator=torch.Generator().manual_seed(9)).to(
            dtype).to(DEVICE).contiguous(memory_format=torch.channels_last)
        exact = exact + other.double()
    if relu:
        exact = exact.relu()
    found = pointwise(x, weight, bias, other, step=step, shuffle=shuffle, relu=relu)
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    assert found.is_contiguous(memory_format=torch.channels_last)
    worst = float((found.double() - exact).abs().max())
    assert worst <= EPSILON[dtype] * float(exact.abs().max())


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_what_is_not_finite_stays_so(relu):
    """In the rows of its own pixel, and in no other."""
    x, weight, bias = operands((2, 16, 2, 2), 16, torch.float16)
    x[1, 3, 1, 0] = float("nan")
    found = pointwise(x, weight, bias, relu=relu)
    bad = ~found.isfinite().all(dim=1)
    assert bad.nonzero().tolist() == [[1, 1, 0]]
    assert bool(found[1, :, 1, 0].isnan().all())


def test_without_a_bias_and_without_images():
    x, weight, _ = operands((1, 16, 2, 2), 8, torch.float16)
    exact = F.conv2d(x.double(), weight.double())
    assert float((pointwise(x, weight, None).double() - exact).abs().max()) <= 2.0**-10 * float(
        exact.abs().max())
    assert pointwise(x[:0], weight, None, shuffle=True).shape == (0, 2, 4, 4)
