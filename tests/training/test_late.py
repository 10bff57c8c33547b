"""Who is told of the steps, and when."""

import pytest
import torch

from scrd_fast.training.late import HostCopy, Late


@pytest.mark.parametrize(("device", "expected"), [
    ("cpu", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]),
    ("cuda", [[], [1], [1, 2, 3], [1, 2, 3]])])  # only a name: nothing is computed there
def test_a_gpu_is_asked_of_the_step_before(device, expected):
    told = []
    late = Late(told.append, torch.device(device))
    seen = []
    for item in (1, 2, 3, 4):
        late.add(item, at_once=item == 3)
        seen.append([*told])
    assert seen == expected


def test_values_are_those_of_the_step():
    values = torch.tensor([1.5, -2.0], requires_grad=True)
    assert HostCopy(values * 2).values == [3.0, -4.0]
