"""The slim student: half the channels inside, the teacher's outside; the full one is as before."""

import hashlib
import json
import re

import pytest
import torch
from torch import nn

from scrd_fast.errors import InputError
from scrd_fast.model.backbones import BACKBONES, STUDENTS, describe_network
from scrd_fast.model.checkpoint import ModelConfig
from scrd_fast.model.scrd import SCRD, model_without_weights, new_model
from scrd_fast.training.config import TrainConfig

# Of the full resnet18's tensors, in their order.
NAMES = "958253593c28fac2c900e3dd2d0c97c0a0fc5a6ed0d759a0811198c24326d781"
SIZES = {nn.Conv2d: "out_channels", nn.ConvTranspose2d: "out_channels",
         nn.BatchNorm2d: "num_features", nn.Linear: "in_features"}


def count(model: SCRD) -> int:
    """Parameters of the bottleneck and of the student."""
    return sum(p.numel() for part in (model.bottleneck, model.student) for p in part.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("student", STUDENTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_have_the_teachers_shapes(backbone, student):
    model = new_model(backbone, 0, student).eval()
    with torch.no_grad():
        features = model(torch.randn(2, 3, 64, 64))
    shapes = [(2, c, 64 // s, 64 // s)
              for c, s in zip(BACKBONES[backbone].channels, (4, 8, 16), strict=True)]
    assert [tuple(f.shape) for f in features.teacher] == shapes
    assert [tuple(f.shape) for f in features.student] == shapes
    assert all(float(f.min()) >= 0 for f in (*features.teacher, *features.student))
    assert features.scale_weights.shape == (2, 3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_half(backbone):
    """Every channel inside; what comes from the teacher and goes to the distances is whole."""
    with torch.device("meta"):
        full, slim = SCRD(backbone), SCRD(backbone, "slim")
    assert count(slim) < 0.4 * count(full)
    wide, narrow = full.state_dict(), slim.state_dict()
    assert {name for name in narrow if name not in wide} == {
        f"student.projections.{k}.{part}" for k in range(3) for part in ("weight", "bias")}
    for name, part in full.named_modules():
        size = next((size for kind, size in SIZES.items() if isinstance(part, kind)), None)
        if size is not None:
            wanted = getattr(part, size) // (1 if name.startswith("teacher.") else 2)
            assert getattr(slim.get_submodule(name), size) == wanted, name
    c1, c2, c3 = BACKBONES[backbone].channels
    assert narrow["bottleneck.conv1.weight"].shape[1] == c1
    assert narrow["bottleneck.conv3.weight"].shape[1] == c2
    assert narrow["bottleneck.blocks.0.shortcut.0.weight"].shape[1] == 2 * c3


def test_the_full_model_is_as_it_was():
    """Recorded before there was another: names, shapes, and what a seed draws, to the end."""
    state = new_model("resnet18", 3).state_dict()
    told = json.dumps([(name, list(value.shape)) for name, value in state.items()])
    assert hashlib.sha256(told.encode()).hexdigest() == NAMES
    recorded = {
        "bottleneck.conv3.weight": [0.022568244, 0.010723117, 0.018135129],
        "student.layer3.1.conv2.weight": [-0.056618430, 0.065039404, -0.068847716]}
    for name, values in recorded.items():
        torch.testing.assert_close(state[name][0, 0, 0], torch.tensor(values), rtol=1e-5, atol=1e-7)
    # The last that are drawn.
    torch.testing.assert_close(
        state["scale_head.linear.weight"][:, 0],
        torch.tensor([0.023595670, 0.042049967, 0.003198730]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(
        state["scale_head.linear.bias"], torch.tensor([0.019681651, 0.004101773, 0.004784910]),
        rtol=1e-5, atol=1e-7)


def test_a_slim_model_without_weights_takes_those_of_a_slim_one():
    drawn = new_model("resnet18", 3, "slim").state_dict()
    empty = model_without_weights("resnet18", "slim")
    empty.load_state_dict(drawn)
    assert all(torch.equal(value, drawn[name]) for name, value in empty.state_dict().items())
    assert not any(drawn[f"student.projections.{k}.bias"].any() for k in range(3))


@pytest.mark.parametrize("student", ["thin", "", None, ["slim"]])
def test_an_unknown_student_is_refused_in_one_line(student):
    told = re.escape(f"student: expected one of ['full', 'slim'], got {student!r}")
    for make in (lambda: SCRD("resnet18", student), lambda: ModelConfig("resnet18", "", student),
                 lambda: TrainConfig(student=student)):
        with pytest.raises(InputError, match=f"^{told}$"):
            make()


def test_only_a_student_that_is_not_the_full_one_is_told():
    assert describe_network("resnet18", "full") == "resnet18"
    assert describe_network("resnet18", "slim") == "resnet18 with a slim student"
