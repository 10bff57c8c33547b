"""The kernel that rounds to 8 bits against PyTorch's own operators."""

import pytest
import torch

from scrd_fast.backends.layers import to_eight_bits
from scrd_fast.graph.tensors import EIGHT_BITS
from scrd_fast.kernels.eight_bits import round_to_eight_bits

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"

pytestmark = pytest.mark.gpu


def check_kind(kind: str) -> None:
    if kind == "fp8" and not CUDA:
        pytest.skip("Triton's interpreter rounds to float8 otherwise than a GPU: needs a CUDA"
                    " device; test_compiled reads how the compiled code rounds")
    if kind == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no numbers of 8 bits with a floating point")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("shape", [(2, 32, 8, 8), (1, 7, 5, 3), (1, 2, 40, 60)], ids=str)
def test_against_pytorch(shape, kind, dtype):
    """Bit for bit, numbers in the middle between two and beyond the largest among them."""
    check_kind(kind)
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(shape, generator=generator)).to(dtype)
    x.flatten()[: x.numel() // 2].mul_(2).round_().div_(2)  # with the factor: halves of numbers
    x = x.to(DEVICE).contiguous(memory_format=torch.channels_last)
    for number in (1.0, 37.5, 250.0):
        factor = torch.tensor(number, device=DEVICE)
        found = round_to_eight_bits(x, factor, EIGHT_BITS[kind])
        expected = to_eight_bits(x.float() * factor, kind)
        assert (found.dtype, found.shape, found.stride()) == (
            EIGHT_BITS[kind], x.shape, x.stride())
        assert torch.equal(found.float(), expected.float())
    assert float(expected.float().abs().max()) == (128 if kind == "int8" else 448)


def test_what_is_not_finite_stays_so_in_fp8():
    check_kind("fp8")
    x = torch.tensor([1.0, float("nan"), float("inf"), float("-inf")], device=DEVICE)
    found = round_to_eight_bits(x.reshape(1, 4, 1, 1), torch.ones((), device=DEVICE),
                                torch.float8_e4m3fn).float().flatten()
    assert found.isnan().tolist() == [False, True, False, False]
    assert found[[0, 2, 3]].tolist() == [1, 448, -448]


def test_no_images():
    x = torch.zeros(0, 3, 4, 4, device=DEVICE)
    assert round_to_eight_bits(x, torch.ones((), device=DEVICE), torch.int8).shape == x.shape
