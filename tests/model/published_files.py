"""What the published code saves, made by hand: names, archives, and what is checked of them."""

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scrd_fast.errors import CheckpointError
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.model.published_pickle import convert_published
from scrd_fast.model.scrd import SCRD

GOLDEN = Path(__file__).parent.parent / "golden" / "published_state_dict_shapes.json"
UNUSED = ("encoder.layer4.", "encoder.fc.", "bn.conv4.", "bn.bn4.")
PUBLISHED_CODE = "models_published"

State = dict[str, Tensor]


def published_name(name: str) -> str:
    """The published code's name of a tensor of this package."""
    for ours, theirs in (("teacher.", "encoder."), ("bottleneck.blocks.", "bn.bn_layer."),
                         ("bottleneck.", "bn."), ("student.", "decoder."),
                         ("scale_head.linear.", "mlp.")):
        if name.startswith(ours):
            shortcut = "upsample." if ours == "student." else "downsample."
            return theirs + name[len(ours):].replace("shortcut.", shortcut)
    raise AssertionError(name)


def unused_state() -> State:
    """Parts that the published class owns but never runs; even NaN there does not matter."""
    return {"encoder.layer4.0.conv1.weight": torch.ones(4, 2, 1, 1),
            "encoder.fc.weight": torch.full((3, 5), float("nan")), "encoder.fc.bias": torch.ones(3),
            "bn.conv4.weight": torch.ones(2, 2, 1, 1), "bn.bn4.running_mean": torch.ones(2)}


def light_state(backbone: str) -> State:
    """Published names with tensors of the right shapes that all repeat a single value."""
    with torch.device("meta"):
        wanted = SCRD(backbone).state_dict()
    return {published_name(name): torch.ones((), dtype=t.dtype).expand(t.shape)
            for name, t in wanted.items()}


def assert_same_tensors(path: Path, model: SCRD) -> None:
    loaded = load_checkpoint(path).model.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name], expected), name


def write_archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save lays it out, with any pickle and any storages."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        for key, values in (storages or {}).items():
            file.writestr(f"archive/data/{key}", values)
    return path


def refusal(path: Path) -> str:
    """The message of the refusal; checks that it is one line and that nothing is written."""
    before = set(path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert_published(path, path.parent / "out.safetensors")
    assert set(path.parent.iterdir()) == before
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 500
    return message
