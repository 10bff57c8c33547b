"""Pre-training a teacher from normal images alone, where ImageNet weights are not to be had.

The task is to see what does not belong: a patch of noise (simplex, or of other kinds) is added to
each image, and from each of its three feature maps the teacher predicts, per cell, the share of
pixels that it moved by more than a threshold. One 1x1 convolution per scale reads the prediction
and is thrown away afterwards. docs/method.md compares this with other tasks.
"""

import os
import time
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scrd_fast.data.anomalies import changed
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.files import as_path, check_writable
from scrd_fast.model.backbones import backbone_of
from scrd_fast.model.checkpoint import FORMAT, write_tensors
from scrd_fast.model.scrd import Teacher
from scrd_fast.progress import show_progress
from scrd_fast.records import from_mapping
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec
from scrd_fast.torch_state import own_state, seeded
from scrd_fast.training.batches import Batches, autocast
from scrd_fast.training.config import PretrainConfig
from scrd_fast.training.convolution import part_weight_gradients
from scrd_fast.training.data import normals_of
from scrd_fast.training.late import HostCopy, Late
from scrd_fast.training.schedule import warmup_cosine
from scrd_fast.training.views import ContiguousViews


class _Heads(nn.Module):
    """Per scale, logits of the share of moved pixels."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in backbone_of(backbone).channels)

    def forward(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [head(f) for head, f in zip(self.scales, features, strict=True)]


def _stages(settings: PretrainConfig) -> list[tuple[ScoringSpec, NoiseConfig, int, int]]:
    """Pixels, law of the noise, and first and last step (exclusive) of the coarse and the full
    stage."""
    coarse, steps, noise = settings.coarse_steps, settings.steps, settings.noise
    spec = ScoringSpec(input_size=settings.input_size, decoding=settings.decoding)
    full = (spec, noise, coarse, steps)
    if coarse == 0:
        return [full]
    half = replace(spec, input_size=settings.input_size // 2)
    return [(half, noise.scaled(0.5), 0, coarse), full]


@own_state()
def pretrain_teacher(
    data: Any, out: str | os.PathLike[str], *, skip_bad: bool = False, progress: bool = True,
    device: str | None = None, **config: Any,
) -> Path:
    """Train a teacher on normal images and write it to `out` (.safetensors).

    data, skip_bad: as `train` takes them; config: fields of PretrainConfig. The file is what
    `train(..., teacher=out)` takes. Raises InputError, DataError, OutputError.
    """
    settings = from_mapping(PretrainConfig, config, "pretrain_teacher", partial=True)
    spec = ScoringSpec(input_size=settings.input_size, decoding=settings.decoding)
    target = as_path(out, "out")
    check_writable(target, "out")
    chosen, _ = normals_of(data, None, None, progress=progress)
    images = ImageSet(chosen, spec=spec)
    images.check(skip_bad=skip_bad, progress=progress)
    place = torch.device(device or "cpu")
    with seeded(settings.seed):
        teacher, heads = Teacher(settings.backbone), _Heads(settings.backbone)
    teacher.train().to(place)
    heads.to(place)
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if place.type == "cpu":
        part_weight_gradients(teacher, settings.precision)
    updated = ContiguousViews(dict(nn.ModuleList([teacher, heads]).named_parameters()))
    optimiser = torch.optim.AdamW(
        updated.views.values(), lr=settings.learning_rate, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, settings.steps))
    stages = [
        Batches(images, np.arange(len(images)), stage, noise, settings.seed, settings.batch_size,
                end, start=begin, ahead=place.type != "cpu", device=place)
        for stage, noise, begin, end in _stages(settings)
    ]
    start = time.perf_counter()
    with show_progress("teacher", enabled=progress) as report:
        def tell(reached: tuple[int, HostCopy]) -> None:
            done, loss = reached
            report(done, settings.steps, "teacher", loss=loss.values[0],
                   images_per_s=done * settings.batch_size / (time.perf_counter() - start))

        late = Late(tell, place)
        for step, (clean, noisy) in enumerate(chain.from_iterable(stages)):
            moved = changed(clean, noisy, settings.threshold).float()
            x = normalise(noisy, spec).contiguous(memory_format=torch.channels_last)
            with autocast(place, settings.precision):
                logits = heads(teacher(x))
            terms = [
                F.binary_cross_entropy_with_logits(
                    z.float(), F.adaptive_avg_pool2d(moved, z.shape[-2:]))
                for z in logits
            ]
            loss = torch.stack(terms).sum()
            teacher.zero_grad(set_to_none=True)
            heads.zero_grad(set_to_none=True)
            loss.backward()
            updated.take_gradients()
            optimiser.step()
            schedule.step()
            late.add((step + 1, HostCopy(loss[None])), at_once=step + 1 == settings.steps)
    header = {"kind": "teacher", "format": FORMAT, "backbone": settings.backbone,
              "teacher": f"pretrained for {settings.steps} steps on {len(images)} images",
              "training": asdict(settings)}
    write_tensors(target, teacher.state_dict(), header)
    return target
