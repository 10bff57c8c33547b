"""Training: bottleneck, student and scale head against a frozen teacher.

One step (arXiv 2503.13828, section 3): the teacher sees the clean and the noisy images, the
student rebuilds the teacher's clean features from the bottleneck, and the contrastive loss pulls
it to them and away from the noisy ones.
"""

import gc
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scrd_fast.data.dataset import ImageSet, split_validation
from scrd_fast.errors import CheckpointError, ScrdError, expect
from scrd_fast.model.checkpoint import (
    FORMAT,
    Checkpoint,
    ModelConfig,
    load_checkpoint,
    load_weights,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from scrd_fast.model.resnet import fold_batchnorms
from scrd_fast.model.scrd import SCRD, Scales, Teacher
from scrd_fast.model.teacher_weights import load_teacher
from scrd_fast.ops.contrastive_loss import ContrastiveLoss, contrastive_loss
from scrd_fast.ops.preprocess import normalise
from scrd_fast.spec import ScoringSpec, from_mapping
from scrd_fast.training.batches import AUTOCAST, Batches, autocast
from scrd_fast.training.evaluation import labelled_validation, normal_validation
from scrd_fast.training.noise import NoiseConfig
from scrd_fast.training.progress import training_progress
from scrd_fast.training.schedule import warmup_cosine

SCHEDULES = ("constant", "cosine")
SELECTIONS = ("validation", "published_test")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults are the published ones but for what is said here.

    backbone; teacher: "imagenet", "random" or a file (see model.teacher_weights).
    input_size, weighting, blur_sigma, reduction: go into the ScoringSpec.
    weight_barrier: strength of -mean(log(3 w)), which keeps the scale weights from collapsing
        onto one scale; only used with weighting "scale".
    steps, batch_size (per process), learning_rate, betas of Adam; schedule: "constant" as
        published or "cosine" with a warm-up of 20 steps.
    precision: "fp32", or autocast to "bf16" or "fp16".
    noise: law of the synthetic anomalies. seed: of everything random.
    published_batchnorm: also run the student on the noisy images, which only moves its
        BatchNorm statistics.
    validate_every: steps between validations, each of which also saves the state for resuming.
    validation_share: of `data`, where no validation images are given.
    selection: "validation" picks the best checkpoint by held-out normals against synthesised
        anomalies; "published_test" by the labelled test set, as the published code does, which
        makes the test figure optimistic.
    """

    backbone: str = "wide_resnet50_2"
    teacher: str = "imagenet"
    input_size: int = 256
    weighting: str = "none"
    weight_barrier: float = 0.1
    blur_sigma: float = 4.0
    reduction: str = "mean"
    steps: int = 40_000
    batch_size: int = 16
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    schedule: str = "constant"
    precision: str = "fp32"
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    seed: int = 111
    published_batchnorm: bool = False
    validate_every: int = 500
    validation_share: float = 0.1
    selection: str = "validation"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every"):
            expect(getattr(self, name) > 0, name, "a positive integer", getattr(self, name))
        expect(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}", repr(self.schedule))
        expect(self.selection in SELECTIONS, "selection", f"one of {SELECTIONS}",
               repr(self.selection))
        expect(self.precision in AUTOCAST, "precision", f"one of {sorted(AUTOCAST)}",
               repr(self.precision))
        expect(self.weight_barrier >= 0, "weight_barrier", "at least 0", self.weight_barrier)
        expect(isinstance(self.noise, NoiseConfig), "noise", "a NoiseConfig", self.noise)
        self.spec()

    def spec(self) -> ScoringSpec:
        return ScoringSpec(input_size=self.input_size, weighting=self.weighting,
                           blur_sigma=self.blur_sigma, reduction=self.reduction)


class _StudentPass(nn.Module):
    """The trained part as one module, so that DDP can wrap it."""

    def __init__(self, model: SCRD) -> None:
        super().__init__()
        self.bottleneck, self.student, self.scale_head = (
            model.bottleneck, model.student, model.scale_head)

    def forward(self, f1: Tensor, f2: Tensor, f3: Tensor) -> tuple[Scales, Tensor]:
        compressed = self.bottleneck((f1, f2, f3))
        return self.student(compressed), self.scale_head(compressed)


def _channels_at_end(tensor: Tensor) -> Tensor:
    """A weight (O, I, h, w), which lies channels-last, as (O, h, w, I): contiguous. Others as they
    are."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _channels_second(tensor: Tensor) -> Tensor:
    """The inverse of `_channels_at_end`."""
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


class Figures(Mapping[str, Any]):
    """loss, loss_clean, loss_noisy and the batch's mean scale weights of one step.

    They are copied from the device in one go, which is waited for at the first look: later steps
    can be given to a GPU before. That look raises ScrdError where the loss is not finite.
    """

    def __init__(self, step: int, result: ContrastiveLoss, weights: Tensor) -> None:
        self.step = step
        single = torch.stack([result.loss, result.clean.sum(), result.noisy.sum()])
        values = torch.cat([single, weights.float().mean(0)]).detach()
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._copied = (torch.cuda.current_stream(values.device).record_event()
                        if values.is_cuda else None)

    @cached_property
    def _figures(self) -> dict[str, Any]:
        if self._copied is not None:
            self._copied.synchronize()
        loss, clean, noisy, *weights = self._values.tolist()
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
                 dtype: torch.dtype = torch.float32) -> None:
        self.config, self.model, self.device = config, model, device
        self.spec = config.spec()
        model.to(device, dtype).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Only the "scale" weighting gives the head a gradient.
        model.scale_head.requires_grad_(config.weighting == "scale")
        self._teacher = self._frozen_teacher()
        self.student_pass: nn.Module = _StudentPass(model)
        if dist.is_initialized():
            ids = [device.index] if device.type == "cuda" else None
            self.student_pass = DistributedDataParallel(self.student_pass, device_ids=ids)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # Views, because on a CPU the fused update copies what is not contiguous: 34 ms of 84
        # million parameters, 65 with the copies, 99 unfused.
        self._updated = {name: _channels_at_end(p.detach()).requires_grad_()
                         for name, p in self.parameters.items()}
        self.optimiser = torch.optim.Adam(
            self._updated.values(), lr=config.learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")

    def _frozen_teacher(self) -> Teacher:
        """The model's teacher as the steps run it: its BatchNorms folded, its weights rounded to
        the precision of the autocast once, not in each step."""
        dtype = AUTOCAST[self.config.precision]
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

    def step(self, step: int, clean: Tensor, noisy: Tensor) -> Figures:
        """One update on (N, 3, S, S) pixels in [0, 1]; returns the figures of the step."""
        clean, noisy = (normalise(x.to(self.device), self.spec) for x in (clean, noisy))
        return self.update(step, clean, noisy)

    def update(self, step: int, clean: Tensor, noisy: Tensor) -> Figures:
        """One update on normalised images (N, 3, S, S)."""
        c = self.config
        n = len(clean)
        both = torch.cat([clean, noisy]).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, c.precision):
            with torch.no_grad():
                features = self._teacher(both)
            teacher_clean = [f[:n] for f in features]
            teacher_noisy = [f[n:] for f in features]
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
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None  # the trained part takes part in every loss
            self._updated[name].grad = _channels_at_end(parameter.grad)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return figures

    def state(self) -> dict[str, Tensor]:
        """Model and optimiser tensors, for an exact resume."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, updated in self._updated.items():
            for key, value in self.optimiser.state[updated].items():
                state[f"adam.{key}.{name}"] = _channels_second(value)
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
            for name, updated in self._updated.items():
                moments = {key: state[f"adam.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                steps = state[f"adam.step.{name}"]
                self.optimiser.state[updated] = {
                    "step": steps.to(self.device) if self.device.type == "cuda" else steps,
                    **{k: _channels_at_end(v).to(updated).contiguous() for k, v in moments.items()},
                }
            moved = {key: state[f"scaler.{key}"].item() for key in self._scaler_state()}
            if moved:
                self.scaler.load_state_dict(self.scaler.state_dict() | moved)
        except KeyError as error:
            raise CheckpointError(f"{where}: expected the optimiser's {error}, got none") from error


def _distributed() -> tuple[int, int, bool]:
    """(rank, world, whether a process group was started here); torchrun sets the environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        return (dist.get_rank(), dist.get_world_size(), False) if dist.is_initialized() else (
            0, 1, False)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size(), True


def leave_process_group() -> None:
    """Destroy the process group, and with it its threads, before the interpreter can end.

    A DistributedDataParallel module is part of reference cycles and holds the group: until the
    cycles are collected gloo's threads live on, and one that lets go of a Python object after
    the interpreter's end aborts the process (seen in 1 run of 10).
    """
    gc.collect()
    dist.destroy_process_group()


def _device(device: str | None, rank: int) -> torch.device:
    if device is not None:
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


@contextmanager
def using_device(device: torch.device) -> Iterator[None]:
    """Make a CUDA device the current one, on which NCCL and the kernels work, and let cuDNN time
    its algorithms, of which the fastest serves all batches: they have one shape."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def train(
    data: Any,
    out: str | os.PathLike[str],
    *,
    validation: Any = None,
    test: tuple[Any, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    device: str | None = None,
    **config: Any,
) -> Checkpoint:
    """Train on normal images and write the best checkpoint to `out` (.safetensors).

    data: normal images, as an array, a list, a folder or a list of paths. validation: held-out
    normals of other patients (else a share of `data` is held out). test: (images, labels) with
    1 = anomalous, only for selection="published_test". resume: continue from the state beside
    `out`, bit for bit on the same number of CPU threads. tensorboard: folder for scalars.
    config: fields of TrainConfig. Under torchrun every process calls this alike; process 0
    writes. Returns the best checkpoint. Raises InputError, DataError, CheckpointError,
    BackendUnavailable, OutputError.
    """
    settings = from_mapping(TrainConfig, config, "train", partial=True)
    expect((test is not None) == (settings.selection == "published_test"), "test",
           "labelled images with selection='published_test', and only then",
           f"{'some' if test is not None else 'none'} with {settings.selection!r}")
    rank, world, started = _distributed()
    try:
        place = _device(device, rank)
        with using_device(place):
            return _train(data, Path(out), validation, test, resume, progress, tensorboard,
                          place, settings, rank, world)
    finally:
        if started:
            leave_process_group()


def _train(
    data: Any, out: Path, validation: Any, test: tuple[Any, Any] | None, resume: bool,
    progress: bool, tensorboard: str | os.PathLike[str] | None, device: torch.device,
    config: TrainConfig, rank: int, world: int,
) -> Checkpoint:
    spec = config.spec()
    images = ImageSet(data)
    chosen = np.arange(len(images))
    if test is not None:
        judge = labelled_validation(ImageSet(test[0], "test"), test[1], spec)
    elif validation is not None:
        held = ImageSet(validation, "validation")
        judge = normal_validation(held, np.arange(len(held)), spec, config.noise, config.seed)
    else:
        chosen, held_out = split_validation(len(images), config.validation_share, config.seed)
        judge = normal_validation(images, held_out, spec, config.noise, config.seed)

    torch.manual_seed(config.seed)
    model = SCRD(config.backbone)
    teacher = load_teacher(model, config.teacher)
    trainer = Trainer(config, model, device)
    state_path = out.with_suffix(".state.safetensors")
    start, best, history = 0, -1.0, []
    if resume:
        header, tensors = read_tensors(state_path, "training state")
        if header["training"] != _plain(config):
            raise CheckpointError(f"{state_path}: expected the configuration of this run, got"
                                  " another; resume with the options it was started with")
        trainer.load_state(tensors, str(state_path))
        start, best, history = header["step"], header["best"], header["history"]

    batches = Batches(images, chosen, spec, config.noise, config.seed, config.batch_size,
                      config.steps, start=start, rank=rank, world=world,
                      ahead=device.type != "cpu", device=device)
    unread: deque[Figures] = deque()
    late = 1 if device.type == "cuda" else 0  # a GPU is given the next step before it is asked
    writer = _tensorboard(tensorboard) if tensorboard is not None and rank == 0 else None
    began = time.perf_counter()
    with training_progress("student", config.steps, enabled=progress and rank == 0) as report, (
            writer or nullcontext()) as scalars:
        for step, (clean, noisy) in enumerate(batches, start=start):
            unread.append(trainer.step(step, clean, noisy))
            judged = (step + 1) % config.validate_every == 0 or step + 1 == config.steps
            while len(unread) > (0 if judged else late):
                figures = unread.popleft()
                done = figures.step + 1
                speed = (done - start) * config.batch_size * world / (time.perf_counter() - began)
                shown = {"loss": figures["loss"], "images_per_s": speed}
                if config.weighting == "scale":
                    shown["weights"] = " ".join(f"{w:.2f}" for w in figures["weights"])
                report(done, **shown, **({"best": best} if best >= 0 else {}))
                if scalars is not None:
                    _write_scalars(scalars, figures, speed)
            if not judged:
                continue
            if rank == 0:
                value = judge.auroc(model, spec)
                history.append({"step": step + 1, judge.name: value, **figures})
                if scalars is not None:
                    scalars.add_scalar(judge.name, value, step + 1)
                if value > best:
                    best = value
                    metrics = {judge.name: value, "step": step + 1, "history": history}
                    save_checkpoint(Checkpoint(model, spec, ModelConfig(config.backbone, teacher),
                                               _plain(config), metrics), out)
                header = {"kind": "training state", "format": FORMAT, "step": step + 1,
                          "best": best, "history": history, "training": _plain(config)}
                write_tensors(state_path, trainer.state(), header)
            if world > 1:
                dist.barrier()
    if rank == 0:
        state_path.unlink(missing_ok=True)  # a finished run has nothing to resume
    result = load_checkpoint(out)
    result.metrics["history"] = history
    return result


def _plain(config: TrainConfig) -> dict[str, Any]:
    """The configuration as JSON would give it back."""
    values = asdict(config)
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _tensorboard(folder: str | os.PathLike[str]) -> AbstractContextManager[Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        from scrd_fast.errors import BackendUnavailable

        raise BackendUnavailable(
            "tensorboard: the package is not installed; pip install 'scrd-fast[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder))


def _write_scalars(writer: Any, figures: Figures, speed: float) -> None:
    done = figures.step + 1
    for name in ("loss", "loss_clean", "loss_noisy"):
        writer.add_scalar(name, figures[name], done)
    for k, weight in enumerate(figures["weights"]):
        writer.add_scalar(f"scale_weight/{k + 1}", weight, done)
    writer.add_scalar("images_per_s", speed, done)


