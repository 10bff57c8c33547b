"""calibrate, monitor: decisions learned from images, kept in the engine file, and watched."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.data.decode.find import find_files
from scrd_fast.data.listing import is_paths
from scrd_fast.data.normals import find_normals
from scrd_fast.engine.engine import Engine, Result
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.load import borrow_engine
from scrd_fast.errors import DataError, EngineFileError, InputError, expect
from scrd_fast.files import as_path, check_writable
from scrd_fast.metrics.decisions import (
    Array,
    Decisions,
    Drift,
    check_rate,
    check_rule,
    conformal,
    drift,
    labelled,
)
from scrd_fast.progress import Progress, silent


@np.errstate(all="warn", under="ignore")  # a caller may have made all of them errors
def calibrate(
    engine: Engine | str | os.PathLike[str], normals: Any, *, anomalous: Any = None,
    fpr: float | None = None, rule: str | None = None, target: float | None = None, seed: int = 0,
    device: str | None = None, trust: bool = False, progress: Progress = silent,
) -> Decisions:
    """Learn from held-out images what the scores of an engine mean, and keep it in its file.

    engine: a loaded one, which then knows it, too, or the path of its file. normals: normal images
    that training has not seen (an array, images, paths or a folder, see Engine.score). By them
    alone: the threshold above which at most a share `fpr` (0.01 by default) of normal images lies,
    and p-values. anomalous: images with anomalies, with which `rule` is "f1" (the default), or
    "sensitivity" or "specificity" with a `target`: half of the images choose the threshold, half
    tell how good it is (`Decisions.report`); seed: of this split. device, trust: of a path, as in
    `load_engine`. progress: called with (done, total, what).

    The graph and its raw scores stay as they are. Raises InputError where the images are too few
    or of one kind only, DataError for a file that cannot be read, and what `load_engine` raises.
    """
    if anomalous is None:
        expect(rule in (None, "conformal") and target is None, "rule",
               "'conformal' without anomalous images, and no target", (rule, target))
        check_rate(0.01 if fpr is None else fpr)
    else:
        check_rule(rule or "f1", target, seed)
        expect(fpr is None, "fpr", "none with anomalous images; rule='specificity' bounds the"
               " false alarms there", fpr)
    path = engine.path if isinstance(engine, Engine) else as_path(engine, "engine")
    check_writable(path, "engine")
    with borrow_engine(engine, device, trust) as opened:
        scores, weights = _score(opened, normals, "normals", progress)
        if anomalous is None:
            decisions = conformal(scores, weights, 0.01 if fpr is None else fpr)
        else:
            sick, _ = _score(opened, anomalous, "anomalous", progress)
            decisions = labelled(scores, weights, sick, rule or "f1", target, seed=seed)
        manifest, members = read_engine_file(path)
        if manifest.members != opened.manifest.members:
            raise EngineFileError(f"{path}: was written anew while its images were scored;"
                                  " calibrate it again")
        manifest = replace(manifest, calibration=decisions)
        write_engine_file(path, manifest, members)
        opened.manifest, opened.decisions = manifest, decisions
    return decisions


@np.errstate(all="warn", under="ignore")  # a caller may have made all of them errors
def monitor(
    engine: Engine | str | os.PathLike[str], recent: Any, *, alpha: float = 0.01,
    device: str | None = None, trust: bool = False, progress: Progress = silent,
) -> Drift:
    """Whether recent images still look like the normal ones that the engine was calibrated with.

    engine, device, trust: as in `calibrate`. recent: images as there, or a Result of scoring them.
    alpha: the chance of a false alarm. Raises InputError where the engine is not calibrated or the
    images are too few, and what `load_engine` raises.
    """
    with borrow_engine(engine, device, trust) as opened:
        if opened.decisions is None:
            raise InputError(f"engine: expected a calibrated one, got {opened.path}; calibrate it"
                             f" with: scrd-fast calibrate {opened.path} NORMAL_IMAGES")
        if isinstance(recent, Result):
            return drift(opened.decisions, recent.scores, recent.scale_weights, alpha=alpha)
        return drift(opened.decisions, *_score(opened, recent, "recent", progress), alpha=alpha)


def _find(where: Any, name: str) -> list[Path]:
    """The files of a place; of normal images in a data set those that are held out for this."""
    if name == "normals":
        return find_normals(where, trained_on=False, stacklevel=5)
    found = find_files(where, stacklevel=5)
    for reason in found.refused.values():
        raise DataError(f"{name}: {reason}")
    return found.paths


def _score(engine: Engine, images: Any, name: str, progress: Progress) -> tuple[Array, Array]:
    """Scores (N,) and scale weights (N, 3); raises DataError naming a file that cannot be read."""
    chosen = _find(images, name) if is_paths(images) else images
    sized = isinstance(chosen, list | tuple) or getattr(chosen, "ndim", 0) > 0
    expect(sized, name, "an array or list of images, paths or a folder", type(images).__name__)
    scores: list[Any] = []
    weights: list[Any] = []
    try:
        for item in engine.stream(chosen, maps=False):
            if item.error is not None:
                raise DataError(f"{name}: {item.error}")
            scores.append(item.score)
            weights.append(item.scale_weights)
            progress(len(scores), len(chosen), f"scoring {name}")
    except InputError as error:
        raise type(error)(name + str(error).removeprefix("images")) from error
    expect(bool(scores), name, "at least one image", "none")
    return np.array(scores), np.array(weights)
