"""calibrate, monitor: decisions learned from images, kept in the engine file, and watched."""

import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scrd_fast.data.decode.find import find_files
from scrd_fast.data.listing import is_paths
from scrd_fast.data.normals import find_anomalous, find_normals
from scrd_fast.engine.engine import Engine, Result
from scrd_fast.engine.engine_file import open_checked, write_engine_file
from scrd_fast.engine.load import borrow_engine
from scrd_fast.engine.stream import Scored
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
    number_patients,
)
from scrd_fast.metrics.map_scale import MapValues, conformal_threshold, learn_scale
from scrd_fast.progress import Progress, silent

# Of warnings given in a function that calibrate or monitor calls, the stacklevel of their callers'
# line: NumPy's decorator stands between them.
_CALLER = 4
_PIXEL_RATE = 0.05


@np.errstate(all="warn", under="ignore")  # a caller may have made all of them errors
def calibrate(
    engine: Engine | str | os.PathLike[str], normals: Any, *, anomalous: Any = None,
    fpr: float | None = None, rule: str | None = None, target: float | None = None, seed: int = 0,
    patient_from: str | None = None, device: str | None = None, trust: bool = False,
    progress: Progress = silent,
) -> Decisions:
    """Learn from held-out images what the scores of an engine mean, and keep it in its file.

    engine: a loaded one, which then knows it, too, or the path of its file. normals: normal images
    that training has not seen (an array, images, paths or a folder, see Engine.score). By them
    alone: the threshold above which at most a share `fpr` (0.01 by default) of normal images lies,
    and p-values. anomalous: images with anomalies, or a data set, of which those are taken that it
    says to be anomalous, of its validation part where that has any. With them `rule` is "f1" (the
    default), or "sensitivity" or "specificity" with a `target`: half of the images choose the
    threshold, half tell how good it is (`Decisions.report`), and all of a patient are in one half;
    seed: of this split; patient_from: as in read_data_set. device, trust: of a path, as in
    `load_engine`. progress: called with (done, total, what), of files or of images that are given.

    The graph and its raw scores stay as they are. Warns where, of normal images alone, several are
    of one patient, for which nothing is promised. Raises InputError where the images or patients
    are too few, DataError for a file that cannot be read, and what `load_engine` raises.
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
        maps = MapValues()
        scores, weights, patients = _score(opened, normals, "normals", progress, patient_from, maps)
        if anomalous is None:
            _warn_of_patients(patients)
            decisions = conformal(scores, weights, 0.01 if fpr is None else fpr)
        else:
            sick, _, theirs = _score(opened, anomalous, "anomalous", progress, patient_from)
            decisions = labelled(scores, weights, sick, rule or "f1", target,
                                 patients=[*patients, *theirs], seed=seed)
        decisions = replace(decisions, maps=learn_scale(
            maps, _choose_pixel_threshold(decisions, maps, opened.spec.reduction)))
        file = open_checked(path)
        manifest = file.manifest
        if manifest.members != opened.manifest.members:
            raise EngineFileError(f"{path}: was written anew while its images were scored;"
                                  " calibrate it again")
        manifest = replace(manifest, calibration=decisions)
        write_engine_file(path, manifest, file.members)
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
        scores, weights, _ = _score(opened, recent, "recent", progress)
        return drift(opened.decisions, scores, weights, alpha=alpha)


def _choose_pixel_threshold(decisions: Decisions, maps: MapValues, reduction: str) -> float:
    """Above which a pixel is anomalous: in at most as large a share of normal images is there one
    as may be called anomalous themselves; where that is not said, in 5 %.

    Where the score is the map's maximum it is that of images, so that an image is anomalous just
    where its map has such a pixel.
    """
    if reduction == "max":
        return decisions.threshold
    rate = _PIXEL_RATE
    if decisions.target is not None and decisions.rule in ("conformal", "specificity"):
        rate = decisions.target if decisions.rule == "conformal" else 1 - decisions.target
    return conformal_threshold(maps.largest, max(rate, 1 / (len(maps.largest) + 1)))


def _warn_of_patients(patients: list[str | None]) -> None:
    images, count = len(patients), len(np.unique(number_patients(patients)))
    if count < images:
        warnings.warn(f"normals: {images} images of {count} patient{'s' if count > 1 else ''}:"
                      " p-values and the rate of false alarms are promised for images of different"
                      " patients, not for several of one", stacklevel=_CALLER)


def _find(where: Any, name: str, patient_from: str | None,
          progress: Progress) -> dict[Path, str | None]:
    """The files of a place with their patients; of a data set those that are for this."""
    if name == "normals":
        return find_normals(where, trained_on=False, patient_from=patient_from, progress=progress,
                            stacklevel=_CALLER + 2)
    if name == "anomalous":
        return find_anomalous(where, patient_from=patient_from, stacklevel=_CALLER + 2)
    found = find_files(where, stacklevel=_CALLER + 2)
    for reason in found.refused.values():
        raise DataError(f"{name}: {reason}")
    return dict.fromkeys(found.paths)


def _score(engine: Engine, images: Any, name: str, progress: Progress,
           patient_from: str | None = None, maps: MapValues | None = None,
           ) -> tuple[Array, Array, list[str | None]]:
    """Scores (N,), scale weights (N, 3), and whom each image is of, None where nothing tells it;
    raises DataError naming a file that cannot be read. maps: learns the values of all maps."""
    patients = _find(images, name, patient_from, progress) if is_paths(images) else {}
    chosen = list(patients) if is_paths(images) else images
    sized = isinstance(chosen, list | tuple) or getattr(chosen, "ndim", 0) > 0
    expect(sized, name, "an array or list of images, paths or a folder", type(images).__name__)
    found: list[Scored] = []
    try:
        files = _stream_files(engine, chosen, maps=maps is not None)
        for done, part in enumerate(files, start=1):
            for item in part:
                if item.error is not None:
                    raise DataError(f"{name}: {item.error}")
                if maps is not None and item.map is not None:
                    maps.add(item.map)
                found.append(replace(item, image=None, map=None))
            progress(done, len(chosen), f"scoring {name}")
    except InputError as error:
        raise type(error)(name + str(error).removeprefix("images")) from error
    expect(bool(found), name, "at least one image", "none")
    return (np.array([item.score for item in found]),
            np.array([item.scale_weights for item in found]),
            [None if item.source is None else patients.get(item.source.path) or item.source.whose
             for item in found])


def _stream_files(engine: Engine, images: Any, *, maps: bool) -> Iterator[Iterator[Scored]]:
    """The images of each file, which may hold many, or each image alone."""
    files = groupby(engine.stream(images, maps=maps), key=lambda item: item.path or item.index)
    return (part for _, part in files)
