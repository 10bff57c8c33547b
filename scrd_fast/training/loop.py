"""A whole training: data, validation, what is saved and resumed, several processes."""

import gc
import hashlib
import os
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from scrd_fast.data.dataset import ImageSet, split_validation
from scrd_fast.errors import expect
from scrd_fast.files import as_path, check_writable
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.scrd import model_without_weights, new_model
from scrd_fast.model.teacher_weights import load_teacher
from scrd_fast.progress import show_progress
from scrd_fast.spec import from_mapping
from scrd_fast.torch_state import own_state
from scrd_fast.training.batches import Batches
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.evaluation import check_labels, labelled_validation, normal_validation
from scrd_fast.training.run import Run
from scrd_fast.training.trainer import Figures, Trainer


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


@own_state()
def train(
    data: Any,
    out: str | os.PathLike[str],
    *,
    validation: Any = None,
    test: tuple[Any, Any] | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    device: str | None = None,
    **config: Any,
) -> Checkpoint:
    """Train on normal images and write the best checkpoint to `out` (.safetensors).

    data: normal images, as an array, a list, a folder or a list of paths. validation: held-out
    normals of other patients (else a share of `data` is held out). test: (images, labels) with
    1 = anomalous, only for selection="published_test". All images are looked at (files: decoded)
    before the first step; skip_bad: leave those out, with a warning, that cannot be used, instead
    of raising an error that lists them.

    resume: continue from the state beside `out`, bit for bit on the same number of CPU threads,
    with the same images and configuration; where nothing is there, from the beginning. More steps
    extend a run with a constant schedule as if it had been started with them, finished or not; a
    finished run with the same steps is returned as it is.

    tensorboard: folder for scalars. config: fields of TrainConfig. Under torchrun every process
    calls this alike; process 0 writes. Returns the best checkpoint. Raises InputError, DataError,
    CheckpointError, BackendUnavailable, OutputError.
    """
    if isinstance(config.get("teacher"), os.PathLike):
        config["teacher"] = os.fspath(config["teacher"])
    settings = from_mapping(TrainConfig, config, "train", partial=True)
    expect((test is not None) == (settings.selection == "published_test"), "test",
           "labelled images with selection='published_test', and only then",
           f"{'some' if test is not None else 'none'} with {settings.selection!r}")
    target = as_path(out, "out")
    rank, world, started = _distributed()
    try:
        place = _device(device, rank)
        with using_device(place):
            return _train(Run(target, settings, world), data, validation, test, resume, skip_bad,
                          progress, tensorboard, place, rank, world)
    finally:
        if started:
            leave_process_group()


def _train(
    run: Run, data: Any, validation: Any, test: tuple[Any, Any] | None, resume: bool,
    skip_bad: bool, progress: bool, tensorboard: str | os.PathLike[str] | None,
    device: torch.device, rank: int, world: int,
) -> Checkpoint:
    config, spec = run.config, run.config.spec()
    if rank == 0:
        teacher_file = [] if config.teacher in ("imagenet", "random") else [config.teacher]
        check_writable(run.out, "out", inputs=teacher_file)
        check_writable(run.path, "out", inputs=teacher_file)
        if tensorboard is not None:
            check_writable(tensorboard, "tensorboard", folder=True)
    resumed = resume and run.resume()
    if rank == 0 and resumed:
        run.restore_best()
    elif rank == 0 and resume:
        warnings.warn(f"{run.out}: nothing to resume; begins with step 1", stacklevel=4)
    if world > 1:
        dist.barrier()
    if run.finished:
        return run.result()

    check = partial(ImageSet.check, skip_bad=skip_bad, progress=progress, rank=rank, world=world)
    images = ImageSet(data)
    check(images)
    seen = {"data": {"count": len(images), "digest": images.digest}}
    if test is not None:
        held = ImageSet(test[0], "test")
        labels = check_labels(test[1], len(held))[check(held)]
        judge = labelled_validation(held, labels, spec)
        seen["test"] = {"count": len(held), "digest": held.digest,
                        "labels": hashlib.sha256(labels.tobytes()).hexdigest()}
    elif validation is not None:
        held = ImageSet(validation, "validation")
        check(held)
        judge = normal_validation(held, np.arange(len(held)), spec, config.noise, config.seed)
        seen["validation"] = {"count": len(held), "digest": held.digest}
    chosen = np.arange(len(images))
    if test is None and validation is None:
        chosen, held_out = split_validation(len(images), config.validation_share, config.seed)
        judge = normal_validation(images, held_out, spec, config.noise, config.seed)

    if resumed:
        run.check_images(seen)
        model = model_without_weights(config.backbone)
        trainer = Trainer(config, model, device)
        trainer.load_state(run.tensors(), str(run.path))
    else:
        model = new_model(config.backbone, config.seed)
        teacher = load_teacher(model, config.teacher)
        trainer = Trainer(config, model, device)
    start = run.step
    batches = Batches(images, chosen, spec, config.noise, config.seed, config.batch_size,
                      config.steps, start=start, rank=rank, world=world,
                      ahead=device.type != "cpu", device=device)
    unread: deque[Figures] = deque()
    late = 1 if device.type == "cuda" else 0  # a GPU is given the next step before it is asked
    writer = _tensorboard(tensorboard) if tensorboard is not None and rank == 0 else None
    if rank == 0 and not resumed:
        run.begin(teacher, seen)
    began = time.perf_counter()
    with show_progress("student", enabled=progress and rank == 0) as report, (
            writer or nullcontext()) as scalars:
        for step, (clean, noisy) in enumerate(batches, start=start):
            unread.append(trainer.step(step, clean, noisy))
            judged = (step + 1) % config.validate_every == 0 or step + 1 == config.steps
            while len(unread) > (0 if judged else late):
                figures = unread.popleft()
                done = figures.step + 1
                speed = (done - start) * config.batch_size * world / (time.perf_counter() - began)
                shown: dict[str, Any] = {"loss": figures["loss"], "images_per_s": speed}
                if config.weighting == "scale":
                    shown["weights"] = " ".join(f"{w:.2f}" for w in figures["weights"])
                if run.best is not None:
                    shown["best"] = run.best
                report(done, config.steps, "student", **shown)
                if scalars is not None:
                    _write_scalars(scalars, figures, speed)
            if not judged:
                continue
            if rank == 0:
                value = judge.auroc(model, spec)
                if scalars is not None:
                    scalars.add_scalar(run.figure, value, step + 1)
                run.keep(trainer, {"step": step + 1, run.figure: value, **figures})
            if world > 1:
                dist.barrier()
    return run.result()


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


