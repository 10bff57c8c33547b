"""The scale head's kernel against the model's own head in float64."""

import pytest
import torch

from scrd_fast.kernels.scale_head import scale_head

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.gpu


def expected(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    pooled = features.double().amax((2, 3))
    return torch.softmax(pooled @ weight.double().T + bias.double(), 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 512, 8, 8), (1, 7, 3, 5), (2, 130, 9, 11)], ids=str)
def test_against_the_formula(shape, dtype, layout):
    """Odd channels and pixels; negative features, of which a padded tile must not make 0."""
    generator = torch.Generator().manual_seed(2)
    features = (torch.randn(shape, generator=generator) - 3).to(dtype).to(DEVICE)
    features = features.contiguous(memory_format=layout)
    weight = torch.randn(3, shape[1], generator=generator).to(DEVICE) / shape[1] ** 0.5
    bias = torch.randn(3, generator=generator).to(DEVICE)
    found = scale_head(features, weight, bias)
    assert (found.dtype, found.shape) == (torch.float32, (shape[0], 3))
    assert float((found - expected(features, weight, bias)).abs().max()) <= 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_no_weight(value):
    features = torch.rand(3, 20, 4, 4, device=DEVICE)
    features[1, 17, 2, 3] = value
    found = scale_head(features, torch.rand(3, 20, device=DEVICE), torch.zeros(3, device=DEVICE))
    assert found.isnan().all(dim=1).tolist() == [False, True, False]


def test_a_view_that_is_neither_layout_and_no_images():
    features = torch.rand(2, 20, 4, 8, device=DEVICE)[..., ::2]
    weight, bias = torch.rand(3, 20, device=DEVICE), torch.rand(3, device=DEVICE)
    found = scale_head(features, weight, bias)
    assert float((found - expected(features, weight, bias)).abs().max()) <= 1e-6
    assert scale_head(features[:0], weight, bias).shape == (0, 3)
