"""calibrate, monitor: decisions learned from images, kept in the engine file, and watched."""

import os
from dataclasses import replace
from typing import Any

import numpy as np

from scrd_fast.data.images import is_paths, list_images
from scrd_fast.engine.engine import Engine, Result
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.load import open_engine
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
    path: str | os.PathLike[str], normals: Any, *, anomalous: Any = None, fpr: float | None = None,
    rule: str | None = None, target: float | None = None, seed: int = 0,
    device: str | None = None, trust: bool = False, progress: Progress = silent,
) -> Decisions:
    """Learn from held-out images what the scores of an engine file mean, and keep it in the file.

    normals: normal images that training has not seen (an array, images, paths or a folder, see
    Engine.score). By them alone: the threshold above which at most a share `fpr` (0.01 by default)
    of normal images lies, and p-values. anomalous: images with anomalies, with which `rule` is
    "f1" (the default), or "sensitivity" or "specificity" with a `target`: half of the images
    choose the threshold, half tell how good it is (`Decisions.report`); seed: of this split.
    device, trust: as in `load_engine`. progress: called with (done, total, what).

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
    path = as_path(path, "path")
    check_writable(path, "path")
    engine, _ = open_engine(path, device=device, trust=trust)
    with engine:
        scores, weights = _scored(engine, normals, "normals", progress)
        if anomalous is None:
            decisions = conformal(scores, weights, 0.01 if fpr is None else fpr)
        else:
            sick, _ = _scored(engine, anomalous, "anomalous", progress)
            decisions = labelled(scores, weights, sick, rule or "f1", target, seed=seed)
    manifest, members = read_engine_file(path)
    if manifest.members != engine.manifest.members:
        raise EngineFileError(f"{path}: was written anew while its images were scored; calibrate"
                              " it again")
    write_engine_file(path, replace(manifest, calibration=decisions), members)
    return decisions


@np.errstate(all="warn", under="ignore")  # a caller may have made all of them errors
def monitor(
    engine: Engine, recent: Any, *, alpha: float = 0.01, progress: Progress = silent
) -> Drift:
    """Whether recent images still look like the normal ones that the engine was calibrated with.

    recent: images as in `calibrate`, or a Result of scoring them. alpha: the chance of a false
    alarm. Raises InputError where the engine is not calibrated or the images are too few.
    """
    if engine.decisions is None:
        raise InputError(f"engine: expected a calibrated one, got {engine.path}; calibrate it with:"
                         f" scrd-fast calibrate {engine.path} NORMAL_IMAGES")
    if isinstance(recent, Result):
        return drift(engine.decisions, recent.scores, recent.scale_weights, alpha=alpha)
    return drift(engine.decisions, *_scored(engine, recent, "recent", progress), alpha=alpha)


def _scored(engine: Engine, images: Any, name: str, progress: Progress) -> tuple[Array, Array]:
    """Scores (N,) and scale weights (N, 3); raises DataError naming a file that cannot be read."""
    chosen = list_images(images) if is_paths(images) else images
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
