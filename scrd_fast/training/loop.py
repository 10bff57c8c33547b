"""A whole training: data, validation, what is saved and resumed, several processes."""

import gc
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from scrd_fast.data.anomalies import Donors
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.layouts import split_by_patient
from scrd_fast.errors import DataError, expect
from scrd_fast.files import as_path, check_writable
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.scrd import model_without_weights, new_model
from scrd_fast.model.teacher_weights import load_teacher
from scrd_fast.progress import Progress, show_progress
from scrd_fast.records import from_mapping
from scrd_fast.torch_state import own_state
from scrd_fast.training.adapted_noise import AdaptedNoise
from scrd_fast.training.batches import Batches
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.data import normals_of
from scrd_fast.training.evaluation import (
    HeldOut,
    Validation,
    check_labels,
    labelled_validation,
    normal_validation,
)
from scrd_fast.training.feature_cache import SHARE_OF_FREE_MEMORY, FeatureCache, free_memory
from scrd_fast.training.late import Late
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


@dataclass(frozen=True)
class _Process:
    """One process of a training: where it computes, and which of how many it is."""

    device: torch.device
    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.world > 1:
            dist.barrier()


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
    patient_from: str | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    progress: bool = True,
    tensorboard: str | os.PathLike[str] | None = None,
    device: str | None = None,
    **config: Any,
) -> Checkpoint:
    """Train on normal images and write the best checkpoint to `out` (.safetensors).

    data: normal images, as an array, a list, a list of paths, or the path of a data set in a layout
    that data.layouts reads (a folder of normal images is one), whose training images are taken.
    validation: held-out normals of other patients, as `data`; else those of the data set; else a
    share of `data` is held out, whole patients where files or patient_from (as in read_data_set)
    tell them. test: (images, labels) with 1 = anomalous, only for selection="published_test". All
    images are looked at (files: decoded) before the first step; skip_bad: leave those out, with a
    warning, that cannot be used, instead of raising an error that lists them.

    resume: continue from the state beside `out`, bit for bit on the same number of CPU threads (in
    bf16: with the same settings of OpenMP), with the same images and configuration; where nothing
    is there, from the beginning. More steps extend a run with a constant schedule as if it had been
    started with them, finished or not; a finished run with the same steps is returned as it is.

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
        process = _Process(_device(device, rank), rank, world)
        with using_device(process.device):
            run = Run(target, settings, world)
            resumed = _take_up(run, process, resume, tensorboard)
            if not run.finished:
                check = partial(ImageSet.check, skip_bad=skip_bad, progress=progress, rank=rank,
                                world=world)
                sources = normals_of(data, validation, patient_from,
                                     progress=progress and process.first)
                images = _look_at(settings, sources, test, check)
                _train(run, images, process, resumed=resumed, progress=progress,
                       tensorboard=tensorboard)
            return run.result()
    finally:
        if started:
            leave_process_group()


def _take_up(
    run: Run, process: _Process, resume: bool, tensorboard: str | os.PathLike[str] | None
) -> bool:
    """Check where files shall go, and with `resume` take up what was done.

    Returns whether something was.
    """
    if process.first:
        teacher = run.config.teacher
        inputs = [] if teacher in ("imagenet", "random") else [teacher]
        check_writable(run.out, "out", inputs=inputs)
        check_writable(run.path, "out", inputs=inputs)
        if tensorboard is not None:
            check_writable(tensorboard, "tensorboard", folder=True)
    resumed = resume and run.resume()
    if process.first and resumed:
        run.restore_best()
    elif process.first and resume:
        # 4: the caller of train, which own_state wraps.
        warnings.warn(f"{run.out}: nothing to resume; begins with step 1", stacklevel=4)
    process.wait()
    return resumed


@dataclass(frozen=True)
class _Images:
    """What a training sees.

    chosen: indices of the images that are trained on. judge: what the model is judged by. held:
    normals that the noise is adapted by, where it is. seen: count and digest of each set of images,
    by name.
    """

    images: ImageSet
    chosen: NDArray[np.int64]
    judge: Validation
    held: HeldOut | None
    seen: dict[str, dict[str, Any]]


def _look_at(
    config: TrainConfig, sources: tuple[Any, Any], test: tuple[Any, Any] | None,
    check: Callable[[ImageSet], NDArray[np.int64]],
) -> _Images:
    """Check all images and set those apart that are held out.

    sources: what to train on, and what to validate on or None; test: as `train` has it.
    """
    spec, noise, seed = config.spec(), config.noise, config.seed
    data, validation = sources
    images = ImageSet(data, spec=spec)
    check(images)
    seen, chosen = {"data": _identity(images)}, np.arange(len(images))
    apart: tuple[ImageSet, NDArray[np.int64]] | None = None
    if test is not None:
        held = ImageSet(test[0], "test", spec)
        labels = check_labels(test[1], len(held))[check(held)]
        _check_patients(images, held)
        judge = labelled_validation(held, labels, spec)
        digest = hashlib.sha256(labels.tobytes()).hexdigest()
        seen["test"] = _identity(held) | {"labels": digest}
    elif validation is not None:
        held = ImageSet(validation, "validation", spec)
        check(held)
        _check_patients(images, held)
        apart = held, np.arange(len(held))
        seen["validation"] = _identity(held)
    else:
        chosen, held_out = split_by_patient(images.patients, config.validation_share, seed)
        apart = images, held_out
    adapted = None
    if apart is not None:
        donors = Donors(images, chosen, spec)
        judge = normal_validation(*apart, spec, noise, seed, donors)
        adapted = HeldOut(*apart, spec, seed, donors) if config.adapt_noise else None
    return _Images(images, chosen, judge, adapted, seen)


def _check_patients(images: ImageSet, held: ImageSet) -> None:
    """Raise DataError where a patient is in both, as `read_data_set` does within a data set."""
    both = {each for each in images.patients if each} & {each for each in held.patients if each}
    for patient in sorted(both):
        raise DataError(f"{held.name}: expected images of other patients than {images.name} has,"
                        f" got some of patient {patient!r} in both")


def _identity(images: ImageSet) -> dict[str, Any]:
    """What a run that is resumed knows its images by."""
    found = {"count": len(images), "digest": images.digest}
    if any(images.patients):
        # Which belong together decides which are held out; who they are stays out of the file.
        order = {patient: place for place, patient in reversed(list(enumerate(images.patients)))}
        order[None] = -1  # who is not known is nobody else
        groups = json.dumps([order[patient] for patient in images.patients])
        found["patients"] = hashlib.sha256(groups.encode()).hexdigest()
    return found


def _train(
    run: Run, images: _Images, process: _Process, *, resumed: bool, progress: bool,
    tensorboard: str | os.PathLike[str] | None,
) -> None:
    """Train from where the run is to its end."""
    cache = _feature_cache(run.config, images, process)
    if resumed:
        run.check_images(images.seen)
        trainer = _resumed_trainer(run, process.device, cache)
    else:
        trainer, teacher = _new_trainer(run.config, process.device, cache)
    writer = _tensorboard(tensorboard) if tensorboard is not None and process.first else None
    if process.first and not resumed:
        run.begin(teacher, images.seen)
    with show_progress("student", enabled=progress and process.first) as report, (
            writer or nullcontext()) as scalars:
        _run_steps(run, trainer, images, process, _Teller(run, process, report, scalars))


def _feature_cache(
    config: TrainConfig, images: _Images, process: _Process
) -> FeatureCache | None:
    """Where clean images come again, on a CPU, and one process sees all of them: of several, each
    would keep all images, and seldom meet a batch of which it has seen every one."""
    again = config.steps * config.batch_size > len(images.chosen)
    if process.device.type != "cpu" or process.world > 1 or not again:
        return None
    return FeatureCache(len(images.images), SHARE_OF_FREE_MEMORY * free_memory())


def _resumed_trainer(run: Run, device: torch.device, cache: FeatureCache | None) -> Trainer:
    """Make the trainer that the run was left with."""
    model = model_without_weights(run.config.backbone, run.config.student)
    trainer = Trainer(run.config, model, device, cache=cache)
    trainer.load_state(run.tensors(), str(run.path))
    return trainer


def _new_trainer(
    config: TrainConfig, device: torch.device, cache: FeatureCache | None
) -> tuple[Trainer, str]:
    """Make the trainer of a new run; and where its teacher's weights came from."""
    model = new_model(config.backbone, config.seed, config.student)
    teacher = load_teacher(model, config.teacher)
    return Trainer(config, model, device, cache=cache), teacher


def _run_steps(
    run: Run, trainer: Trainer, images: _Images, process: _Process, teller: "_Teller"
) -> None:
    """Take the steps that are left, and after some of them judge the model and keep what it is."""
    config, spec = run.config, run.config.spec()
    begin, adapted = run.step, run.adapted_noise()
    while begin < config.steps:
        batches = _batches(config, begin, adapted, images, process)
        for step, (clean, noisy) in enumerate(batches, start=begin):
            figures = trainer.step(step, clean, noisy, batches.indices(step)[1])
            done = step + 1
            judged = done % config.validate_every == 0 or done == config.steps
            teller.add(figures, at_once=judged)
            if not judged:
                continue
            entry: dict[str, Any] = {"step": done}
            # After other steps a longer run would not have moved the law.
            if adapted is not None and done % config.validate_every == 0:
                adapted = _moved(adapted, trainer, images, process, done)
                entry["noise"] = adapted.entry()
                teller.tell_noise(done, adapted)
            if process.first:
                value = images.judge.auroc(trainer.model, spec)
                teller.tell_value(done, value)
                entry[run.figure] = value
                if config.selection == "validation":  # the published choice is the largest
                    entry["standard_error"] = images.judge.standard_error(value)
                run.keep(trainer, {**entry, **figures})
            process.wait()
        begin = batches.steps


def _batches(
    config: TrainConfig, begin: int, adapted: AdaptedNoise | None, images: _Images,
    process: _Process,
) -> Batches:
    """Those of the steps from `begin` on; with an adapted law up to the next validation, for no
    batch shall be made ahead by the law of before."""
    end = config.steps
    if adapted is not None:
        end = min(end, begin + config.validate_every - begin % config.validate_every)
    return Batches(images.images, images.chosen, config.spec(),
                   config.noise if adapted is None else adapted.noise, config.seed,
                   config.batch_size, end, start=begin, rank=process.rank, world=process.world,
                   ahead=process.device.type != "cpu", device=process.device,
                   factors=None if adapted is None else adapted.factors)


def _moved(
    adapted: AdaptedNoise, trainer: Trainer, images: _Images, process: _Process, done: int
) -> AdaptedNoise:
    """The law after the validation of `done` steps, the same in all processes."""
    found: list[Any] = [None]
    if process.first:
        assert images.held is not None
        found = [images.held.aurocs(trainer.model, adapted.noise, adapted.factors)]
    if process.world > 1:
        dist.broadcast_object_list(found, device=process.device)
    return adapted.moved(found[0], done)


class _Teller:
    """Tells of the steps' figures, on the line of progress and to TensorBoard."""

    def __init__(self, run: Run, process: _Process, report: Progress, scalars: Any) -> None:
        self._run, self._process, self._report, self._scalars = run, process, report, scalars
        self._late = Late(self._tell, process.device)
        self._start, self._began = run.step, time.perf_counter()

    def add(self, figures: Figures, *, at_once: bool) -> None:
        """Take the figures of a step; tell of them soon, or `at_once`."""
        self._late.add(figures, at_once=at_once)

    def _tell(self, figures: Figures) -> None:
        config, done = self._run.config, figures.step + 1
        images = (done - self._start) * config.batch_size * self._process.world
        speed = images / (time.perf_counter() - self._began)
        shown: dict[str, Any] = {"loss": figures["loss"], "images_per_s": speed}
        if config.weighting == "scale":
            shown["weights"] = " ".join(f"{w:.2f}" for w in figures["weights"])
        if self._run.best is not None:
            shown["best"] = self._run.best
        self._report(done, config.steps, "student", **shown)
        if self._scalars is not None:
            _write_scalars(self._scalars, figures, speed)

    def tell_noise(self, done: int, adapted: AdaptedNoise) -> None:
        """Tell of the law of the noise, as it goes on after `done` steps."""
        if self._scalars is not None:
            for name, value in adapted.scalars().items():
                self._scalars.add_scalar(name, value, done)

    def tell_value(self, done: int, value: float) -> None:
        """Tell of the figure that the model is judged by, after `done` steps."""
        if self._scalars is not None:
            self._scalars.add_scalar(self._run.figure, value, done)


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


