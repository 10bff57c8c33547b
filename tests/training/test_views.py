"""The fused update through contiguous views is the plain one."""

from copy import deepcopy

import torch

from scrd_fast.model.scrd import Teacher
from scrd_fast.torch_state import seeded
from scrd_fast.training.views import ContiguousViews


def test_the_fused_update_is_the_plain_one():
    """Of channels-last weights, which it reads and writes where they lie."""
    with seeded(0):
        model = Teacher("resnet18")
        images = torch.rand(2, 3, 64, 64)
    model.train().to(memory_format=torch.channels_last)
    plain = deepcopy(model)
    views = ContiguousViews(dict(model.named_parameters()))
    assert all(view.is_contiguous() for view in views.views.values())
    options = {"lr": 1e-3, "weight_decay": 1e-2}
    fused = torch.optim.AdamW(views.views.values(), fused=True, **options)
    reference = torch.optim.AdamW(plain.parameters(), foreach=False, **options)
    for _ in range(3):
        # One model's gradients for both: two would part where a rounding flips a ReLU.
        model.zero_grad()
        sum(f.square().mean() for f in model(images)).backward()
        views.take_gradients()
        fused.step()
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            other.grad = mine.grad.clone()
        reference.step()
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)
