"""Gradients of weights in parts: those of PyTorch, in every dtype, and its threads as they were."""

import gc
import threading

import pytest
import torch
from torch import nn

from scrd_fast.model.scrd import SCRD
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.convolution import part_weight_gradients, share_weight_gradients
from scrd_fast.training.trainer import Trainer

CPU = torch.device("cpu")
CONVOLUTIONS = {
    "1x1": (lambda: nn.Conv2d(5, 7, 1, bias=False), (3, 5, 6, 4)),
    "3x3": (lambda: nn.Conv2d(16, 32, 3, padding=1, bias=False), (4, 16, 8, 8)),
    "stride": (lambda: nn.Conv2d(6, 33, 3, stride=2, padding=1, bias=False), (2, 6, 9, 7)),
    "stem": (lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), (2, 3, 32, 32)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 19, 2, stride=2, bias=False), (3, 8, 5, 6)),
    "bias": (lambda: nn.Conv2d(5, 7, 1), (3, 5, 6, 4)),
    "one channel": (lambda: nn.Conv2d(4, 1, 3, padding=1, bias=False), (1, 4, 3, 3)),
}
# Of the largest gradient: sums of up to 600 products, rounded once in bf16. PyTorch itself may be
# off by more: where the CPU has no bf16, it imitates it in parts that are each rounded.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2 ** -7}


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_are_those_of_pytorch(name, dtype, threads):
    make, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    conv, x = make(), torch.randn(shape)
    conv.weight.data, x = conv.weight.data.to(dtype), x.to(dtype)
    plain, double = make(), make().double()
    plain.weight.data, double.weight.data = conv.weight.data, conv.weight.data.double()
    if conv.bias is not None:
        conv.bias.data = conv.bias.data.to(dtype)
        plain.bias.data, double.bias.data = conv.bias.data, conv.bias.data.double()
    share_weight_gradients(conv, threads)
    found = []
    for module, images in ((conv, x), (plain, x.clone()), (double, x.double())):
        images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
        y = module(images)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        y.backward(weights.to(y.dtype))
        found.append((y.detach(), images.grad, module.weight.grad,
                      *([] if module.bias is None else [module.bias.grad])))
    for got, theirs, expected in zip(*found, strict=True):
        assert got.dtype == dtype
        error, their_error = (float((each.double() - expected).abs().max() / expected.abs().max())
                              for each in (got, theirs))
        assert error <= max(TOLERANCE[dtype], 1.25 * their_error)


def test_autocast_rounds_as_ever():
    """A step in bf16 gives the forward pass of PyTorch to the bit, and float32 gradients."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, padding=1, bias=False)
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected = conv(x)
        share_weight_gradients(conv, 2)
        assert torch.equal(conv(x), expected)
        conv(x).float().sum().backward()
    assert expected.dtype == torch.bfloat16
    assert conv.weight.grad.dtype == torch.float32
    with torch.no_grad():
        assert conv(x).dtype == torch.float32


def test_threads_are_as_they_were():
    before = torch.get_num_threads()
    share_weight_gradients(nn.Conv2d(2, 2, 1, bias=False), 3)
    assert torch.get_num_threads() == before
    seen = []
    later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert seen == [before]


def test_the_threads_end_with_the_model():
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
    share_weight_gradients(model, 3)
    ours = [each for each in threading.enumerate()
            if each not in before and each.name.startswith("gradients")]
    assert len(ours) == 3
    del model
    gc.collect()
    for each in ours:
        each.join(10)
        assert not each.is_alive()


def test_only_where_threads_would_wait(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "3000")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)

    def is_shared(precision, amx, threads):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
        conv = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            part_weight_gradients(conv, precision)
        finally:
            torch.set_num_threads(before)
        return "forward" in vars(conv[0])

    assert is_shared("bf16", False, 2)
    assert not is_shared("fp32", False, 2)
    assert not is_shared("bf16", True, 2)
    assert not is_shared("bf16", False, 1)
    assert not is_shared("bf16", False, 8)
    for turns in ("300000", "infinity"):
        monkeypatch.setenv("GOMP_SPINCOUNT", turns)
        assert not is_shared("bf16", False, 2)
    monkeypatch.delenv("GOMP_SPINCOUNT")
    assert not is_shared("bf16", False, 2)
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert is_shared("bf16", False, 2)


@pytest.mark.slow
def test_a_training_is_the_same_each_time_and_near_that_without(monkeypatch):
    """Three steps in bf16, whose loss another order of sums moves by its last bits only."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):  # else a trainer shares by itself
        monkeypatch.delenv(name, raising=False)
    generator = torch.Generator().manual_seed(0)
    clean, change = torch.randn(2, 4, 3, 64, 64, generator=generator)

    def losses(shared):
        torch.manual_seed(0)
        trainer = Trainer(TrainConfig(backbone="resnet18", input_size=64, precision="bf16"),
                          SCRD("resnet18"), CPU)
        if shared:
            share_weight_gradients(trainer.student_pass, 2)
        return [trainer.update(i, clean, clean + 0.3 * change)["loss"] for i in range(3)]

    first = losses(True)
    assert losses(True) == first
    assert first == pytest.approx(losses(False), rel=1e-3)
