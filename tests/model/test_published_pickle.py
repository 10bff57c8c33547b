"""model.published_pickle: published files become the same tensors."""

import json
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from scrd_fast.errors import OutputError
from scrd_fast.model.backbones import BACKBONES
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.model.published_pickle import convert_published
from scrd_fast.spec import ScoringSpec
from tests.model.published_files import (
    GOLDEN,
    PUBLISHED_CODE,
    UNUSED,
    State,
    assert_same_tensors,
    light_state,
    refusal,
)

# ---- State dicts ----


def test_names_and_shapes_are_the_published_ones():
    shapes = {k: v for k, v in json.loads(GOLDEN.read_text()).items() if not k.startswith(UNUSED)}
    assert {k: list(t.shape) for k, t in light_state("wide_resnet50_2").items()} == shapes


@pytest.mark.slow
def test_a_state_dict_becomes_the_same_tensors(model, published, convert):
    path = convert(OrderedDict(published))
    assert_same_tensors(path, model)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.backbone == "resnet18"
    assert checkpoint.config.teacher == "published checkpoint"
    assert checkpoint.spec == ScoringSpec(weighting="none", reduction="mean", blur_sigma=4.0)
    assert checkpoint.training == {}
    assert checkpoint.metrics == {"converted_from": "published.pth"}


@pytest.mark.parametrize(("key", "prefix", "protocol"),
                         [("state_dict", "", 4), ("model", "module.", 5)])
def test_nested_and_data_parallel_state_dicts_of_any_protocol(convert, key, prefix, protocol):
    state = {prefix + name: value for name, value in light_state("resnet18").items()}
    saved = {"epoch": 7, "optimizer": {"lr": 1e-3, "betas": (0.5, 0.999)}, key: state}
    loaded = load_checkpoint(convert(saved, pickle_protocol=protocol)).model
    assert all(bool((p == 1).all()) for p in loaded.state_dict().values())


def test_dtypes_strides_offsets_and_missing_batch_counts(model, published, convert):
    state = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    weight, bias = state["mlp.weight"], state["mlp.bias"]
    state["mlp.weight"] = weight.double().t().contiguous().t()  # column by column
    state["mlp.bias"] = torch.cat([torch.zeros(5), bias, torch.zeros(2)])[5:8]
    conv = state["encoder.conv1.weight"].half()
    state["encoder.conv1.weight"] = conv
    loaded = load_checkpoint(convert(state)).model.state_dict()
    assert torch.equal(loaded["scale_head.linear.weight"], weight)
    assert torch.equal(loaded["scale_head.linear.bias"], bias)
    assert torch.equal(loaded["teacher.conv1.weight"], conv.float())
    assert loaded["teacher.bn1.num_batches_tracked"].dtype == torch.int64
    assert all(t == 0 for name, t in loaded.items() if name.endswith("num_batches_tracked"))


# ---- Whole modules ----


def as_module(state: State) -> nn.Module:
    """A module tree with these names, of classes in a module that no longer can be imported."""
    code = types.ModuleType(PUBLISHED_CODE)

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._norm_layer = nn.BatchNorm2d  # the published blocks keep the class itself
            self.notes = {"shape": torch.Size([1, 2]), "device": torch.device("cpu"),
                          "dtype": torch.float32, "names": {"a"}, "fixed": frozenset("b")}
            self.register_buffer("scratch", torch.zeros(2), persistent=False)

    Part.__module__, Part.__qualname__ = PUBLISHED_CODE, "Part"
    code.Part = Part  # type: ignore[attr-defined]
    sys.modules[PUBLISHED_CODE] = code
    root = Part()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        part: nn.Module = root
        for parent in parents:
            if parent not in part._modules:
                part.add_module(parent, Part())
            part = part.get_submodule(parent)
        if leaf in ("running_mean", "running_var", "num_batches_tracked"):
            part.register_buffer(leaf, value)
        else:
            part.register_parameter(leaf, nn.Parameter(value))
    root.relu, root.nothing = nn.ReLU(inplace=True), None
    return root


@pytest.fixture
def save_module(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Save a module as a whole and forget the code of its classes."""

    def save(module: nn.Module) -> Path:
        torch.save(module, tmp_path / "module.pth")
        del sys.modules[PUBLISHED_CODE]
        return tmp_path / "module.pth"

    return save


def test_a_whole_module_becomes_the_same_tensors(model, published, save_module, tmp_path):
    source = save_module(as_module(published))
    with pytest.raises(ModuleNotFoundError):  # what reading it by torch.load needs
        torch.load(source, weights_only=False)
    assert_same_tensors(convert_published(source, tmp_path / "out.safetensors"), model)
    assert PUBLISHED_CODE not in sys.modules


def test_a_data_parallel_module(save_module, tmp_path):
    source = save_module(nn.DataParallel(as_module(light_state("resnet18"))))
    loaded = load_checkpoint(convert_published(source, tmp_path / "out.safetensors")).model
    assert all(bool((p == 1).all()) for p in loaded.state_dict().values())


@pytest.mark.slow
def test_a_whole_wide_resnet50_2(save_module, tmp_path):
    shapes = json.loads(GOLDEN.read_text())
    state = {name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()
             if not name.endswith("num_batches_tracked")}
    path = convert_published(save_module(as_module(state)), tmp_path / "out.safetensors")
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.backbone == "wide_resnet50_2"
    assert all(bool((p == 0.5).all()) for p in checkpoint.model.parameters())


# ---- What does not fit ----


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_a_missing_key_is_named_with_the_backbone(tmp_path, backbone):
    state = light_state(backbone)
    del state["decoder.layer2.0.upsample.0.weight"]
    torch.save(state, tmp_path / "short.pth")
    message = refusal(tmp_path / "short.pth")
    assert f"nearest to {backbone}," in message
    assert "student.layer2.0.shortcut.0.weight is missing" in message


@pytest.mark.parametrize(("change", "expected"), [
    ({"mlp.weight": torch.zeros(3, 511)},
     r"scale_head\.linear\.weight: expected \(3, 512\), got \(3, 511\)"),
    ({"encoder.layer3.9.conv1.weight": torch.zeros(1)}, "teacher.layer3.9.conv1.weight is unknown"),
    ({"attention.weight": torch.zeros(1)}, "attention.weight: the published model has no such"),
    ({"x" * 10_000: torch.zeros(1)}, "x: the published model has no such"),
    ({"mlp.bias": torch.zeros(3, dtype=torch.int64)}, "expected torch.float32, got torch.int64"),
    ({"mlp.bias": torch.tensor([0.0, float("nan"), 0.0])}, "expected finite values"),
    ({"mlp.bias": torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64)}, "expected finite values"),
    ({"module.mlp.bias": torch.zeros(3)}, "comes twice"),
    ({"mlp.bias": [0.0, 0.0, 0.0]}, "expected tensors by name, got list under mlp.bias"),
    ({("mlp", "bias"): torch.zeros(3)}, "got _TensorRef under a tuple"),
])
def test_wrong_tensors_are_named(tmp_path, change, expected):
    torch.save(light_state("resnet18") | change, tmp_path / "wrong.pth")
    assert re.search(expected, refusal(tmp_path / "wrong.pth"))


@pytest.mark.parametrize("saved", [[1, 2], torch.zeros(3), {"model": 5}, nn.ReLU, slice(1, 2)],
                         ids=str)
def test_other_things_than_a_model(tmp_path, saved):
    torch.save(saved, tmp_path / "other.pth")
    refusal(tmp_path / "other.pth")


def test_an_unwritable_place(tmp_path):
    torch.save(light_state("resnet18"), tmp_path / "published.pth")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        convert_published(tmp_path / "published.pth", tmp_path / "file" / "out.safetensors")
