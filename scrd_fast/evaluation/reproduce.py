"""reproduce: the published protocol on a prepared data set, beside one that chooses nothing on the
test set."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scrd_fast.building.build import build_engine
from scrd_fast.data.layouts import Item, read_data_set, split_by_patient
from scrd_fast.data.prepare import DATA_SETS
from scrd_fast.errors import DataError, InputError, expect
from scrd_fast.evaluation.calibrate import calibrate
from scrd_fast.evaluation.evaluate import evaluate
from scrd_fast.files import as_path, atomic_write, check_writable
from scrd_fast.progress import show_progress
from scrd_fast.records import from_mapping, is_whole, read_record
from scrd_fast.training.config import TrainConfig
from scrd_fast.training.data import labelled_test
from scrd_fast.training.loop import train

PROTOCOLS = ("published", "held-out")
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

    Raises InputError, DataError where the folder is of another data set, OutputError, and what
    training and building raise, CheckpointError among them where `config` is not that of a training
    that was begun.
    """
    expect(name in DATA_SETS, "name", f"one of {', '.join(DATA_SETS)}", repr(name))
    expect(len(seeds) > 0 and all(is_whole(seed, 0) for seed in seeds), "seeds",
           "integers from 0", seeds)
    expect(len(protocols) > 0 and set(protocols) <= set(PROTOCOLS), "protocols",
           f"some of {PROTOCOLS}", protocols)
    for own in {"seed", "selection"} & set(config):
        raise InputError(f"{own}: expected none, as the protocol and seeds say it, got"
                         f" {config[own]!r}")
    from_mapping(TrainConfig, config, "reproduce", partial=True)  # before hours of training
    folder, source = as_path(out, "out"), as_path(data, "data")
    check_writable(folder, "out", folder=True)
    _check_prepared(source, name)
    return [_run(source, folder / f"{protocol}-{seed}", protocol, seed, progress, config)
            for seed in seeds for protocol in protocols]


def _check_prepared(source: Path, name: str) -> None:
    record = source / "prepared.json"
    try:
        found = json.loads(record.read_text()).get("data_set")
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{source}: expected a folder that scrd-fast prepare {name} made, got one"
                        " without its prepared.json") from error
    if found != name:
        raise DataError(f"{source}: expected the data set {name}, got {found}")


def _run(source: Path, folder: Path, protocol: str, seed: int, progress: bool,
         config: Mapping[str, Any]) -> Outcome:
    told = folder / "outcome.json"
    if told.is_file():
        return _read(told, protocol, seed)
    engine = folder / "model.scrd"
    items = read_data_set(source).normals("train")
    kept, held = split_by_patient([item.patient for item in items],
                                  config.get("validation_share", TrainConfig.validation_share),
                                  seed)
    held_out = _paths(items, held)
    more: dict[str, Any] = {"validation": held_out}
    if protocol == "published":
        more = {"test": labelled_test(source), "selection": "published_test"}
    chosen = _paths(items, kept if protocol == "held-out" else range(len(items)))
    checkpoint = folder / "model.safetensors"
    train(chosen, checkpoint, resume=checkpoint.exists(), seed=seed, progress=progress, **more,
          **config)
    with show_progress("engine", enabled=progress) as shown:
        build_engine(checkpoint, engine, precision="fp32", progress=shown).close()
        if protocol == "held-out":
            calibrate(engine, held_out, fpr=_RATE, progress=shown)
        figures = evaluate(engine, source, pixels=False, seed=seed, progress=shown).parts[0].figures
    f1, acc = ("best_f1", "best_accuracy") if protocol == "published" else ("f1", "accuracy")
    outcome = Outcome(protocol, seed, figures["auroc"].value, figures[f1].value, figures[acc].value)
    with atomic_write(told) as temporary:
        temporary.write_text(json.dumps(vars(outcome), indent=1) + "\n")
    return outcome


def _paths(items: Sequence[Item], places: Any) -> list[Path]:
    return [items[int(place)].path for place in places]


def _read(told: Path, protocol: str, seed: int) -> Outcome:
    try:
        outcome = read_record(Outcome, json.loads(told.read_text()), "outcome")
    except (OSError, ValueError) as error:  # an InputError is a ValueError
        raise DataError(f"{told}: expected what an earlier run found, got another file; remove it"
                        f" to do it again ({error})") from error
    if (outcome.protocol, outcome.seed) != (protocol, seed):
        raise DataError(f"{told}: expected the outcome of {protocol} with seed {seed}, got"
                        f" {outcome.protocol} with {outcome.seed}")
    return outcome


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
