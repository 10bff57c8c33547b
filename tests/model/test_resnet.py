"""BatchNorms folded into the convolutions before them; the stem."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from scrd_fast.model.backbones import BACKBONES
from scrd_fast.model.resnet import fold_batchnorms
from scrd_fast.model.scrd import Student, Teacher


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(("part", "shape"), [(Teacher, (2, 3, 32, 32)), (Student, None)])
def test_folding_changes_nothing_but_rounding(backbone, part, shape):
    """Convolutions, transposed ones and shortcuts, with statistics that are not the first ones."""
    torch.manual_seed(0)
    module = part(backbone).double().eval()
    inputs = shape or (2, 512 * BACKBONES[backbone].expansion, 1, 1)
    for bn in module.modules():
        if isinstance(bn, nn.BatchNorm2d):
            for tensor in (bn.weight, bn.bias, bn.running_mean):
                nn.init.normal_(tensor, mean=0.5)
            nn.init.uniform_(bn.running_var, 0.5, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    folded = fold_batchnorms(module)
    images = torch.randn(inputs, dtype=torch.float64)
    with torch.no_grad():
        for got, expected in zip(folded(images), module(images), strict=True):
            assert float((got - expected).abs().max()) <= 1e-12 * float(expected.abs().max())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_stem_pools_before_its_relu():
    """Values and gradients are those of the published order, bit for bit."""
    torch.manual_seed(0)
    teacher, images = Teacher("resnet18").train(), torch.rand(2, 3, 64, 64)
    images[0, :, :32] = 0.5  # equal values side by side
    features = teacher(images)
    other = deepcopy(teacher)
    x = other.maxpool(other.relu(other.bn1(other.conv1(images))))
    assert torch.equal(features[0], other.layer1(x))
    for module, scale in ((teacher, features[0]), (other, other.layer1(x))):
        scale.square().sum().backward()
        assert float(module.conv1.weight.grad.abs().max()) > 0
    for mine, published in zip(teacher.parameters(), other.parameters(), strict=True):
        assert (mine.grad is None and published.grad is None) or torch.equal(
            mine.grad, published.grad)
