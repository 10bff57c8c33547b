"""reproduce: the published protocol on a prepared data set, beside one that chooses nothing on the
test set."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from scrd_fast.building.build import build_engine
from scrd_fast.data.layouts import Item, read_data_set, split_by_patient
from scrd_fast.data.prepare import DATA_SETS
from scrd_fast.errors import DataError, InputError, expect
from scrd_fast.evaluation.calibrate import calibrate
from scrd_fast.evaluation.evaluate import Evaluation, evaluate
from scrd_fast.files import as_path, atomic_write, check_writable
from scrd_fast.metrics.decisions import Decisions, normals_needed
from scrd_fast.metrics.ranking import decide
from scrd_fast.progress import show_progress
from scrd_fast.records import from_mapping, is_whole, read_record
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.data import labelled_test
from scrd_fast.training.loop import train
from scrd_fast.training.run import state_path

_SELECTIONS = {"published": "published_test", "held-out": "validation"}
PROTOCOLS = tuple(_SELECTIONS)
SEEDS = (111, 112, 113)
_RATE = 0.05  # of false alarms among held-out normal images, for the held-out protocol's threshold


@dataclass(frozen=True)
class Outcome:
    """The figures of one training.

    auc: AUROC of the test images. f1, acc: F1 and accuracy: in the protocol "published" each at its
    best threshold on the test set, where the checkpoint was chosen, too, so all three are
    optimistic; in "held-out" at the threshold above which at most 5 % of held-out normal images
    lie, the checkpoint chosen on these with synthesised anomalies.
    """

    protocol: str
    seed: int
    auc: float
    f1: float
    acc: float

    def __post_init__(self) -> None:
        for name in ("auc", "f1", "acc"):
            expect(0 <= getattr(self, name) <= 1, f"outcome.{name}", "a number from 0 to 1",
                   getattr(self, name))


def reproduce(
    name: str, data: str | os.PathLike[str], out: str | os.PathLike[str], *,
    seeds: Sequence[int] = SEEDS, protocols: Sequence[str] = PROTOCOLS, progress: bool = True,
    **config: Any,
) -> list[Outcome]:
    """Train, build and evaluate by each protocol with each seed; returns what came out.

    name: one of data.prepare.DATA_SETS; data: the folder that `prepare` made of it. out: a folder
    with one below it for each training. What is there already is not done again, and a training
    that was interrupted goes on. config: fields of TrainConfig but seed and selection, whose
    defaults are the published ones.

    Raises InputError, among others where too few normal images would be held out; DataError where
    `data` is of another data set or what is in `out` is of other images or another configuration;
    OutputError, and what training and building raise.
    """
    expect(name in DATA_SETS, "name", f"one of {', '.join(DATA_SETS)}", repr(name))
    expect(len(seeds) > 0 and all(is_whole(seed, 0) for seed in seeds)
           and len(set(seeds)) == len(seeds), "seeds", "different integers from 0", seeds)
    expect(len(protocols) > 0 and set(protocols) <= set(PROTOCOLS), "protocols",
           f"some of {PROTOCOLS}", protocols)
    for own in {"seed", "selection"} & set(config):
        raise InputError(f"{own}: expected none, as the protocol and seeds say it, got"
                         f" {config[own]!r}")
    settings = from_mapping(TrainConfig, config, "reproduce", partial=True)
    folder, source = as_path(out, "out"), as_path(data, "data")
    check_writable(folder, "out", folder=True)
    images = _check_prepared(source, name)
    normals = read_data_set(source).normals("train")
    splits = {seed: split_by_patient([item.patient for item in normals],
                                     settings.validation_share, seed) for seed in seeds}
    fewest = min(len(held) for _, held in splits.values())
    expect("held-out" not in protocols or fewest >= normals_needed(_RATE), "validation_share",
           f"at least {normals_needed(_RATE)} of the {len(normals)} normal images, which a"
           f" false-alarm rate of {_RATE:g} takes", fewest)
    outcomes = []
    for seed in seeds:
        for protocol in protocols:
            training = replace(settings, seed=seed, selection=_SELECTIONS[protocol])
            outcomes.append(_run(source, folder / f"{protocol}-{seed}", protocol, training, images,
                                 normals, splits[seed], progress))
    return outcomes


def _check_prepared(source: Path, name: str) -> str:
    """The digest of all its images; raises DataError where it is not the data set that is meant."""
    try:
        record = json.loads((source / "prepared.json").read_text())
        found, images = record["data_set"], record["images_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{source}: expected a folder that scrd-fast prepare {name} made, got one"
                        " without its prepared.json, or with a damaged one") from error
    if found != name:
        raise DataError(f"{source}: expected the data set {name}, got {found}")
    return str(images)


def _run(
    source: Path, folder: Path, protocol: str, training: TrainConfig, images: str,
    normals: Sequence[Item], split: tuple[Any, Any], progress: bool,
) -> Outcome:
    told, engine = folder / "outcome.json", folder / "model.scrd"
    _check_same(folder / "run.json", {"images_sha256": images, **asdict(training)})
    if told.is_file():
        return _read(told, protocol, training.seed)
    kept, held = (_paths(normals, places) for places in split)
    published = protocol == "published"
    chosen = _paths(normals, range(len(normals))) if published else kept
    more: dict[str, Any] = {"test": labelled_test(source)} if published else {"validation": held}
    checkpoint = folder / "model.safetensors"
    train(chosen, checkpoint, resume=checkpoint.exists() or state_path(checkpoint).exists(),
          progress=progress, **more, **vars(training))
    with show_progress("engine", enabled=progress) as shown:
        build_engine(checkpoint, engine, precision="fp32", progress=shown).close()
        decisions = None if published else calibrate(engine, held, fpr=_RATE, progress=shown)
        found = evaluate(engine, source, pixels=False, seed=training.seed, progress=shown)
    for reason in found.failed.values():
        raise DataError(f"expected a score of each test image, got none of {len(found.failed)}:"
                        f" {reason}")
    outcome = _judge(protocol, training.seed, found, decisions)
    _write(told, vars(outcome))
    return outcome


def _judge(
    protocol: str, seed: int, found: Evaluation, decisions: Decisions | None
) -> Outcome:
    figures = found.parts[0].figures
    auc = figures["auroc"].value
    if decisions is None:
        return Outcome(protocol, seed, auc, figures["best_f1"].value,
                       figures["best_accuracy"].value)
    # Not the evaluation's own threshold, which a data set's labelled validation images may choose.
    decided = decide([each.label for each in found.images],
                     np.array([each.score for each in found.images], np.float32),
                     decisions.threshold)
    return Outcome(protocol, seed, auc, float(decided.f1), float(decided.accuracy))


def _paths(items: Sequence[Item], places: Any) -> list[Path]:
    return [items[int(place)].path for place in places]


def _check_same(path: Path, values: Mapping[str, Any]) -> None:
    """Write down what a folder is of, or raise DataError where it is of something else."""
    now = json.loads(json.dumps(values, default=os.fspath))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, now)
        return
    try:
        was = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _not_ours(path, error) from error
    other = sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    if other:
        raise DataError(f"{path}: expected a run with these images and options, got one with other"
                        f" {', '.join(other)}; name another folder for these")


def _read(told: Path, protocol: str, seed: int) -> Outcome:
    try:
        outcome = read_record(Outcome, json.loads(told.read_text()), "outcome")
    except (OSError, ValueError) as error:  # an InputError is a ValueError
        raise _not_ours(told, error) from error
    if (outcome.protocol, outcome.seed) != (protocol, seed):
        raise DataError(f"{told}: expected the outcome of {protocol} with seed {seed}, got"
                        f" {outcome.protocol} with {outcome.seed}")
    return outcome


def _not_ours(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: expected what an earlier run wrote, got another file; remove its"
                     f" folder to do it again ({error})")


def _write(path: Path, values: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n")


def list_rows(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """A Markdown table: a row for each protocol, means over the seeds and standard deviations."""
    rows = ["| data set | protocol | seeds | AUC | F1 | ACC |", "|---|---|---|---|---|---|"]
    for protocol in dict.fromkeys(each.protocol for each in outcomes):
        some = [each for each in outcomes if each.protocol == protocol]
        title = "published (checkpoint and thresholds chosen on the test set: optimistic)" if (
            protocol == "published") else "held-out (nothing chosen on the test set)"
        cells = [_show([getattr(each, figure) for each in some]) for figure in ("auc", "f1", "acc")]
        rows.append(f"| {name} | {title} | {len(some)} | {' | '.join(cells)} |")
    return rows


def _show(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.2f}{spread}"
