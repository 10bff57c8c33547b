"""One step of training: bottleneck, student and scale head against a frozen teacher.

One step (arXiv 2503.13828, section 3): the teacher sees the clean and the noisy images, the
student rebuilds the teacher's clean features from the bottleneck, and the contrastive loss pulls
it to them and away from the noisy ones.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scrd_fast.errors import CheckpointError, ScrdError
from scrd_fast.model.checkpoint import load_weights
from scrd_fast.model.resnet import fold_batchnorms
from scrd_fast.model.scrd import SCRD, Scales, Teacher
from scrd_fast.ops.contrastive_loss import ContrastiveLoss, contrastive_loss
from scrd_fast.reference.preprocess import normalise
from scrd_fast.training.batches import autocast, autocast_dtype
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.convolution import part_weight_gradients
from scrd_fast.training.feature_cache import FeatureCache
from scrd_fast.training.late import HostCopy
from scrd_fast.training.schedule import warmup_cosine
from scrd_fast.training.views import ContiguousViews, channels_at_end, channels_second


class _StudentPass(nn.Module):
    """The trained part as one module, so that DDP can wrap it."""

    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.bottleneck, self.student, self.scale_head = (
            model.bottleneck, model.student, model.scale_head)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor) -> tuple[Scales, Tensor]:
        compressed = self.bottleneck((f1, f2, f3))
        return self.student(compressed), self.scale_head(compressed)


class Figures(Mapping[str, Any]):
    """loss, loss_clean, loss_noisy and the batch's mean scale weights of one step.

    They are copied from the device in one go, which is waited for at the first look: later steps
    can be given to a GPU before. That look raises ScrdError where the loss is not finite.
    """

    def __init__(self, step: int, result: ContrastiveLoss, weights: Tensor) -> None:
        self.step = step
        single = torch.stack([result.loss, result.clean.sum(), result.noisy.sum()])
        self._copy = HostCopy(torch.cat([single, weights.float().mean(0)]))

    @cached_property
    def _figures(self) -> dict[str, Any]:
        loss, clean, noisy, *weights = self._copy.values
        if not math.isfinite(loss):
            raise ScrdError(f"train: the loss is {loss} at step {self.step + 1}; lower"
                            " learning_rate, or use precision='fp32'")
        return {"loss": loss, "loss_clean": clean, "loss_noisy": noisy, "weights": weights}

    def __getitem__(self, name: str) -> Any:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)


class Trainer:
    """Model, optimiser and one training step; knows nothing of files or validation."""

    def __init__(self, config: TrainConfig, model: SCRD, device: torch.device,
                 dtype: torch.dtype = torch.float32, cache: FeatureCache | None = None) -> None:
        self.config, self.model, self.device, self._cache = config, model, device, cache
        self.spec = config.spec()
        model.to(device, dtype).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Only the "scale" weighting gives the head a gradient.
        model.scale_head.requires_grad_(config.weighting == "scale")
        self._teacher = self._frozen_teacher()
        self.student_pass: nn.Module = _StudentPass(model)
        if device.type == "cpu":
            part_weight_gradients(self.student_pass, config.precision)
        if dist.is_initialized():
            ids = [device.index] if device.type == "cuda" else None
            self.student_pass = DistributedDataParallel(self.student_pass, device_ids=ids)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._updated = ContiguousViews(self.parameters)
        self.optimiser = torch.optim.Adam(
            self._updated.views.values(), lr=config.learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def _frozen_teacher(self) -> Teacher:
        """The model's teacher as the steps run it: its BatchNorms folded, its weights rounded to
        the precision of the autocast once, not in each step."""
        dtype = autocast_dtype(self.config.precision)
        teacher = fold_batchnorms(self.model.teacher)
        if dtype is not None:
            teacher.to(dtype)
        return teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, a pure function of it: nothing to restore on resume."""
        c = self.config
        if c.schedule == "constant":
            return c.learning_rate
        return c.learning_rate * warmup_cosine(step, c.steps)

    def step(self, step: int, clean: Tensor, noisy: Tensor,
             indices: NDArray[np.int64] | None = None) -> Figures:
        """One update on (N, 3, S, S) pixels in [0, 1]; returns the figures of the step.

        indices (N,): of the clean images, by which the trainer's cache knows them again.
        """
        clean, noisy = (normalise(x.to(self.device), self.spec) for x in (clean, noisy))
        return self.update(step, clean, noisy, indices)

    def update(self, step: int, clean: Tensor, noisy: Tensor,
               indices: NDArray[np.int64] | None = None) -> Figures:
        """One update on normalised images (N, 3, S, S)."""
        c = self.config
        with autocast(self.device, c.precision):
            with torch.no_grad():
                teacher_clean, teacher_noisy = self._teach(clean, noisy, indices)
            student, weights = self.student_pass(*teacher_clean)
            if c.published_batchnorm:
                with torch.no_grad():
                    self.student_pass(*teacher_noisy)
        student = [s.to(f.dtype) for s, f in zip(student, teacher_clean, strict=True)]
        result = contrastive_loss(teacher_clean, teacher_noisy, student, weights, c.weighting)
        loss, figures = result.loss, Figures(step, result, weights)
        if not loss.is_cuda:
            figures["loss"]  # finite: checked before anything is updated where that costs no time
        if c.weighting == "scale" and c.weight_barrier:
            loss = loss - c.weight_barrier * torch.log(3 * weights).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(step)
        self.student_pass.zero_grad(set_to_none=True)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self._updated.take_gradients()
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return figures

    def _teach(self, clean: Tensor, noisy: Tensor, indices: NDArray[np.int64] | None
               ) -> tuple[Scales, Scales]:
        """The teacher's features of the clean and of the noisy images.

        On a CPU in two passes of one size, cache or not: with the size of a batch the bits may
        change.
        """
        def teach(images: Tensor) -> Scales:
            features: Scales = self._teacher(
                images.contiguous(memory_format=torch.channels_last))
            return features

        if self.device.type != "cpu":
            (c1, n1), (c2, n2), (c3, n3) = (f.chunk(2) for f in teach(torch.cat([clean, noisy])))
            return (c1, c2, c3), (n1, n2, n3)
        if self._cache is None or indices is None:
            return teach(clean), teach(noisy)
        return self._cache.features(indices, lambda: teach(clean)), teach(noisy)

    def state(self) -> dict[str, Tensor]:
        """Model and optimiser tensors, for an exact resume."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, updated in self._updated.views.items():
            for key, value in self.optimiser.state[updated].items():
                state[f"adam.{key}.{name}"] = channels_second(value)
        for key, value in self._scaler_state().items():
            state[f"scaler.{key}"] = torch.tensor(value)
        return state

    def _scaler_state(self) -> dict[str, float]:
        """What moves in the gradient scaler; empty unless training in fp16."""
        return {k: v for k, v in self.scaler.state_dict().items()
                if k in ("scale", "_growth_tracker")}

    def load_state(self, state: Mapping[str, Tensor], where: str) -> None:
        """The inverse of `state`; raises CheckpointError where it does not fit."""
        model = {n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")}
        load_weights(self.model, model, where)
        self._teacher = self._frozen_teacher()
        try:
            for name, updated in self._updated.views.items():
                moments = {key: state[f"adam.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                steps = state[f"adam.step.{name}"]
                self.optimiser.state[updated] = {
                    "step": steps.to(self.device) if self.device.type == "cuda" else steps,
                    **{k: channels_at_end(v).to(updated).contiguous() for k, v in moments.items()},
                }
            moved = {key: state[f"scaler.{key}"].item() for key in self._scaler_state()}
            if moved:
                self.scaler.load_state_dict(self.scaler.state_dict() | moved)
        except KeyError as error:
            raise CheckpointError(f"{where}: expected the optimiser's {error}, got none") from error
