"""Checkpoints: one safetensors file whose JSON header says everything needed to use it.

The header's single metadata entry "scrd_fast" holds {"format", "spec", "model", "training",
"metrics"}. Nothing in the file is ever executed; unknown fields and versions are refused.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scrd_fast.errors import CheckpointError, InputError, OutputError, expect
from scrd_fast.files import as_path, atomic_write
from scrd_fast.model.backbones import backbone_of, divisor_of
from scrd_fast.model.scrd import SCRD, model_without_weights
from scrd_fast.records import from_mapping
from scrd_fast.spec import DecodingRule, ScoringSpec

FORMAT = 3
# 2 had no prior, and no student but the full one; 1 no rule for decoding: pictures were read as by
# default.
_READABLE = (1, 2, FORMAT)
_KEY = "scrd_fast"


@dataclass(frozen=True)
class ModelConfig:
    """backbone, student: names in model.backbones; teacher: where its weights come from."""

    backbone: str
    teacher: str
    student: str = "full"

    def __post_init__(self) -> None:
        backbone_of(self.backbone)
        divisor_of(self.student)
        expect(isinstance(self.teacher, str), "model.teacher", "a text", self.teacher)


@dataclass
class Checkpoint:
    """A model with its scoring specification, and how it came to be.

    training: the training configuration, {} for an imported model; metrics: figures by name.
    """

    model: SCRD
    spec: ScoringSpec
    config: ModelConfig
    training: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and one JSON header to a safetensors file, atomically."""
    contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    metadata = {_KEY: json.dumps(header)}
    try:
        with atomic_write(path) as temporary:
            save_file(contiguous, temporary, metadata=metadata)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OutputError(f"{path}: cannot be written: {error}") from error


def read_header(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The JSON header of a file of this package; raises CheckpointError."""
    return _open(Path(path), kind)[0]


def read_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of this package; raises CheckpointError."""
    header, source = _open(Path(path), kind)
    try:
        with source as file:
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _open(path: Path, kind: str) -> tuple[dict[str, Any], Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a {kind} file, got no such file")
    try:
        file = safe_open(path, framework="pt")
        metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        hint = ""
        if path.suffix in (".pth", ".pt", ".pkl"):
            hint = f"; import a published one with: scrd-fast convert {path} OUT.safetensors"
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, got one that is truncated or of another"
            f" kind ({error}){hint}"
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path}: expected a {kind} of scrd_fast, got a foreign safetensors")
    try:
        header = json.loads(metadata[_KEY])
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: its header is not JSON ({error})") from error
    if not isinstance(header, dict) or header.get("kind") != kind:
        raise CheckpointError(f"{path}: expected a {kind}, got {header.get('kind')!r}"
                              if isinstance(header, dict) else f"{path}: its header is no object")
    found = header.get("format")
    if type(found) is not int or found not in _READABLE:
        raise CheckpointError(f"{path}: expected format {FORMAT} or older, got {found!r}; a newer"
                              " scrd_fast may have written it")
    if found == 1:
        for name in {"spec", "training"} & header.keys():
            if isinstance(header[name], dict) and header[name]:
                header[name].setdefault("decoding", asdict(DecodingRule()))
    if found < 3:
        if isinstance(header.get("spec"), dict):
            header["spec"].setdefault("prior", None)
        for name in {"model", "training"} & header.keys():
            if isinstance(header[name], dict) and header[name]:
                header[name].setdefault("student", "full")
    return header, file


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors strictly; raises CheckpointError naming what does not fit."""
    wanted = module.state_dict()
    missing, extra = sorted(set(wanted) - set(tensors)), sorted(set(tensors) - set(wanted))
    if missing or extra:
        raise CheckpointError(
            f"{where}: expected the {len(wanted)} tensors of the model, got"
            f" {len(missing)} missing {missing[:3]} and {len(extra)} unknown {extra[:3]}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{where}: {name}: expected {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise CheckpointError(
                f"{where}: {name}: expected {wanted[name].dtype}, got {tensor.dtype}"
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{where}: {name}: expected finite values, got NaN or infinity")
    module.load_state_dict(tensors)


def save_checkpoint(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> Path:
    """Write a checkpoint atomically; raises OutputError where the place cannot be written."""
    path = as_path(path, "path")
    header = {
        "kind": "checkpoint",
        "format": FORMAT,
        "spec": checkpoint.spec.to_dict(),
        "model": asdict(checkpoint.config),
        "training": checkpoint.training,
        "metrics": checkpoint.metrics,
    }
    write_tensors(path, checkpoint.model.state_dict(), header)
    return path


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; the model comes in eval mode, on the CPU, in float32.

    Raises CheckpointError naming the file and what is wrong with it.
    """
    path = as_path(path, "path")
    header, tensors = read_tensors(path, "checkpoint")
    unknown = sorted(set(header) - {"kind", "format", "spec", "model", "training", "metrics"})
    if unknown:
        raise CheckpointError(f"{path}: its header has fields that are not known: {unknown}")
    try:
        spec = ScoringSpec.from_dict(header.get("spec", {}))
        config = from_mapping(ModelConfig, header.get("model", {}), "model")
    except InputError as error:
        raise CheckpointError(f"{path}: its header does not fit: {error}") from error
    model = model_without_weights(config.backbone, config.student)
    load_weights(model, tensors, str(path))
    training, metrics = header.get("training", {}), header.get("metrics", {})
    return Checkpoint(model.eval(), spec, config, training, metrics)
