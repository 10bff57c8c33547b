"""Where a teacher's weights come from: torchvision's ImageNet file, or a pre-trained one.

Torchvision's files carry the start of their SHA-256 in their name. It is checked before the file
is read, and the file is read by an unpickler that accepts tensors only.
"""

import hashlib
import os
from pathlib import Path

import torch

from scrd_fast.errors import BackendUnavailable, CheckpointError
from scrd_fast.model.backbones import backbone_of
from scrd_fast.model.checkpoint import load_weights, read_tensors
from scrd_fast.model.published import rename_resnet
from scrd_fast.model.scrd import SCRD

IMAGENET_DIGESTS = {"resnet18": "f37072fd", "resnet34": "b627a593", "resnet50": "0676ba61",
                    "wide_resnet50_2": "95faca4d"}
_IMAGENET_URL = "https://download.pytorch.org/models/"


def imagenet_file_name(backbone: str) -> str:
    """Name of torchvision's IMAGENET1K_V1 file."""
    backbone_of(backbone)  # raises where there is none
    return f"{backbone}-{IMAGENET_DIGESTS[backbone]}.pth"


def load_teacher(model: SCRD, source: str | os.PathLike[str]) -> str:
    """Fill the model's teacher; returns a text that says where the weights came from.

    source: "imagenet" (torch's hub cache, else a download by torch.hub), "random", the path of
    torchvision's .pth, or the path of a .safetensors made by `pretrain-teacher`.
    Raises CheckpointError or BackendUnavailable, which name the file to provide.
    """
    if source == "random":
        return "random"
    if source == "imagenet":
        _load_imagenet(model, _find_imagenet(model.backbone))
        return "imagenet"
    path = Path(source)
    if path.suffix in (".pth", ".pt"):
        _load_imagenet(model, path)
        return "imagenet"
    header, tensors = read_tensors(path, "teacher")
    if header.get("backbone") != model.backbone:
        raise CheckpointError(
            f"{path}: expected a teacher of {model.backbone}, got {header.get('backbone')}"
        )
    load_weights(model.teacher, tensors, str(path))
    return str(header.get("teacher", "pretrained"))


def _find_imagenet(backbone: str) -> Path:
    name = imagenet_file_name(backbone)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if not (folder / name).is_file():
        try:
            torch.hub.load_state_dict_from_url(
                _IMAGENET_URL + name, model_dir=str(folder), map_location="cpu",
                check_hash=True, weights_only=True,
            )
        except (OSError, RuntimeError) as error:
            raise BackendUnavailable(
                f"teacher 'imagenet': torchvision's {name} (IMAGENET1K_V1) is neither in"
                f" {folder} nor can it be downloaded ({error}); put the file there, or give its"
                " path, or make a teacher from normal images: scrd-fast pretrain-teacher"
            ) from error
    return folder / name


def _load_imagenet(model: SCRD, path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected {imagenet_file_name(model.backbone)}, got no file")
    digest, expected = hashlib.sha256(path.read_bytes()).hexdigest()[:8], IMAGENET_DIGESTS[
        model.backbone]
    if digest != expected:
        raise CheckpointError(
            f"{path}: expected torchvision's {imagenet_file_name(model.backbone)} with digest"
            f" {expected}, got {digest}"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    wanted = set(model.teacher.state_dict())
    renamed = {rename_resnet(name): value for name, value in state.items()}
    # Torchvision's older files have no num_batches_tracked, which eval mode never reads.
    for name in wanted - set(renamed):
        if name.endswith("num_batches_tracked"):
            renamed[name] = torch.zeros((), dtype=torch.int64)
    load_weights(model.teacher, {n: v for n, v in renamed.items() if n in wanted}, str(path))
