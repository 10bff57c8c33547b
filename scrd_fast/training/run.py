"""What a training leaves: the best checkpoint, and beside it the state to go on from.

The state stays after the end, for more steps later. It is written before the checkpoint, so that
whatever stops a run between both, the best model is in one of them.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scrd_fast.errors import CheckpointError, InputError, expect
from scrd_fast.model.checkpoint import (
    FORMAT,
    Checkpoint,
    ModelConfig,
    load_checkpoint,
    load_weights,
    read_header,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from scrd_fast.model.scrd import SCRD, model_without_weights
from scrd_fast.records import from_mapping
from scrd_fast.training.adapted_noise import AdaptedNoise
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.evaluation import FIGURES
from scrd_fast.training.trainer import Trainer

_KIND = "training state"
_BEST = "best."  # before the names of tensors of an earlier, better model
# What a run did before a field of the configuration came to be.
_BEFORE: dict[str, Any] = {"noise": {"mixture": [["simplex", 1.0]]}, "adapt_noise": False}

Entry = dict[str, Any]


@dataclass(frozen=True)
class _Header:
    """What a state says besides its tensors.

    training: the configuration; teacher: where its weights came from; processes: how many;
    images: count and digest of each set of images, by name; step: steps that are done; history:
    validations after each `validate_every` steps; end: the one after the last step, where it is
    none of these. A longer run would not have had it.
    """

    training: dict[str, Any]
    teacher: str
    processes: int
    images: dict[str, dict[str, Any]]
    step: int
    history: tuple[Entry, ...]
    end: Entry | None


def state_path(out: Path) -> Path:
    """Where the state to go on from lies, beside the checkpoint `out`."""
    return out.with_suffix(".state.safetensors")


def _read_header(path: Path) -> _Header:
    header = read_header(path, _KIND)
    try:
        return from_mapping(_Header, {k: v for k, v in header.items()
                                      if k not in ("kind", "format")}, "header")
    except InputError as error:
        raise CheckpointError(f"{path}: another release of scrd_fast wrote it, which this one"
                              f" cannot go on from ({error}); start anew, without resume"
                              ) from error


def steps_done(out: str | os.PathLike[str]) -> int:
    """How many steps the training that writes to `out` has done, as its state tells; else 0."""
    path = state_path(Path(out))
    return _read_header(path).step if path.exists() else 0


def _completed(training: Mapping[str, Any], before: Mapping[str, Any] = _BEFORE) -> dict[str, Any]:
    """A configuration as it was written, with the fields that have come since."""
    added = {name: _completed(training.get(name, {}), value) if isinstance(value, dict) else value
             for name, value in before.items()
             if isinstance(value, dict) or name not in training}
    return {**training, **added}


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A text "name: was -> now" for each value that is not the same."""
    found = []
    for name in sorted(was.keys() | now.keys()):
        a, b = was.get(name, "none"), now.get(name, "none")
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            found.append(f"{prefix}{name}: {a} -> {b}")
    return found


class Run:
    """The files of one training, and what it has come to."""

    def __init__(self, out: Path, config: TrainConfig, processes: int) -> None:
        """Raises InputError where the configuration cannot be written to a file."""
        self.out, self.config, self.processes = out, config, processes
        self.path = state_path(out)
        self.figure = FIGURES[config.selection]
        try:
            self.training = json.loads(json.dumps(asdict(config)))
        except TypeError as error:
            raise InputError(f"train: expected plain numbers and texts, got others ({error})"
                             ) from error
        self.teacher = ""
        self.images: dict[str, dict[str, Any]] = {}
        self.step = 0
        self.history: list[Entry] = []
        self.end: Entry | None = None

    @property
    def finished(self) -> bool:
        return self.step == self.config.steps

    def _best(self, entries: list[Entry]) -> Entry | None:
        """The last of those whose figure is the largest, or below it by its standard error at
        most; without a standard error the first of the largest.

        Synthesised anomalies are soon found nearly all, and then the largest of many figures is a
        matter of luck: an early model may have it that has not learned yet what is normal.
        """
        largest = best = None
        for entry in entries:
            if largest is None or entry[self.figure] > largest[self.figure]:
                largest = best = entry
            else:
                below = largest[self.figure] - entry[self.figure]
                if below <= largest.get("standard_error", -math.inf):
                    best = entry
        return best

    @property
    def best(self) -> float | None:
        """The best figure so far."""
        found = self._best(self.history)
        return None if found is None else float(found[self.figure])

    def adapted_noise(self) -> AdaptedNoise | None:
        """The law that the next steps go by, where it is adapted: the last validation's."""
        if not self.config.adapt_noise:
            return None
        kept = self.history[-1]["noise"] if self.history else None
        return AdaptedNoise.begin(self.config.noise, kept)

    def begin(self, teacher: str, images: dict[str, dict[str, Any]]) -> None:
        """Note what a new run works on. Nobody shall go on from the state of one before it."""
        self.teacher, self.images = teacher, images
        self.path.unlink(missing_ok=True)

    def resume(self) -> bool:
        """Take up what was done; False where nothing was.

        Raises CheckpointError where it was done in another way than it would be gone on with.
        """
        if not self.path.exists():
            if self.out.exists():
                raise CheckpointError(
                    f"{self.out}: there is a checkpoint, but not the state {self.path} to go on"
                    " from; train without resume to replace it, or name another file")
            return False
        header = _read_header(self.path)
        was = _completed(header.training) | {"processes": header.processes}
        now = self.training | {"processes": self.processes}
        found = _differences(was | {"steps": None}, now | {"steps": None})
        if found:
            raise CheckpointError(
                f"{self.path}: expected the configuration of this run, got another:"
                f" {', '.join(found)}; resume with the options it was started with")
        expect(self.config.steps >= header.step, "steps",
               f"at least the {header.step} that are done ({self.path})", self.config.steps)
        if self.config.schedule != "constant" and was["steps"] != self.config.steps:
            raise CheckpointError(
                f"{self.path}: steps: {was['steps']} -> {self.config.steps}: the learning rate of"
                f" the {self.config.schedule} schedule ends with the steps that a run was started"
                " with; only a constant one can go on. Train anew, without resume")
        self.teacher, self.images = header.teacher, header.images
        self.step, self.history = header.step, list(header.history)
        self.end = header.end if self.finished else None
        return True

    def check_images(self, images: dict[str, dict[str, Any]]) -> None:
        """Raise CheckpointError unless these are the images that the run was started with."""
        found = []
        for name in sorted(images.keys() | self.images.keys()):
            was, now = self.images.get(name), images.get(name)
            a, b = (each["count"] if each else "none" for each in (was, now))
            if a != b:
                found.append(f"{name}: {a} -> {b}")
            elif was != now:
                same = was and now and was["digest"] == now["digest"]
                found.append(f"{name}: {a} as before, but " + (
                    "of other patients (--patient-from)" if same else
                    "others, or in another order"))
        if found:
            raise CheckpointError(
                f"{self.path}: expected the images that this run was started with, got others:"
                f" {', '.join(found)}; resume with the former, or train anew, without resume")

    def tensors(self) -> dict[str, Tensor]:
        """Those of the state, for Trainer.load_state."""
        return read_tensors(self.path, _KIND)[1]

    def restore_best(self) -> None:
        """Make the checkpoint what it would be if the run had only come to here.

        It differs where a run goes on for more steps, or was stopped before it was written.
        Raises CheckpointError where the best model is lost.
        """
        entry = self._best(self._entries())
        if entry is None:
            return
        stored = load_checkpoint(self.out) if self.out.exists() else None
        here = stored is not None and stored.metrics.get("step") == entry["step"]
        if stored is not None and here and _completed(stored.training) == self.training:
            return
        tensors = self.tensors()
        model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        other = {n.removeprefix(_BEST): t for n, t in tensors.items() if n.startswith(_BEST)}
        if entry["step"] == self.step or other:
            best = model_without_weights(self.config.backbone, self.config.student)
            load_weights(best, model if entry["step"] == self.step else model | other,
                         str(self.path))
        elif stored is not None and here:
            best = stored.model
        else:
            raise CheckpointError(
                f"{self.out}: expected the best checkpoint of this run, of step {entry['step']},"
                " got " + ("no such file" if stored is None else "another one")
                + "; put it there, or train anew, without resume")
        self._save(best, entry)

    def keep(self, trainer: Trainer, entry: Entry) -> None:
        """Write the state after a validation, and the checkpoint where it is the best so far."""
        self.step = entry["step"]
        displaced = dict[str, Tensor]()
        better = self._best([*self.history, entry]) is entry
        if self.step % self.config.validate_every == 0:
            self.history.append(entry)
        else:
            self.end = entry
            if better and self.history:  # what a longer run would still have
                stored = load_checkpoint(self.out).model.state_dict()
                displaced = {f"{_BEST}{name}": value for name, value in stored.items()
                             if not name.startswith("teacher.")}
        header = _Header(self.training, self.teacher, self.processes, self.images, self.step,
                         tuple(self.history), self.end)
        write_tensors(self.path, trainer.state() | displaced,
                      {"kind": _KIND, "format": FORMAT, **asdict(header)})
        if better:
            self._save(trainer.model, entry)

    def _entries(self) -> list[Entry]:
        return self.history if self.end is None else [*self.history, self.end]

    def _save(self, model: SCRD, entry: Entry) -> None:
        history = [each for each in self._entries() if each["step"] <= entry["step"]]
        metrics = {self.figure: entry[self.figure], "step": entry["step"], "history": history,
                   "images": {name: each["count"] for name, each in self.images.items()}}
        save_checkpoint(
            Checkpoint(model, self.config.spec(),
                       ModelConfig(self.config.backbone, self.teacher, self.config.student),
                       self.training, metrics), self.out)

    def result(self) -> Checkpoint:
        """The best checkpoint, with the whole history."""
        checkpoint = load_checkpoint(self.out)
        checkpoint.metrics["history"] = self._entries()
        return checkpoint
