"""fit_prior: from normal images to a normal map, which a checkpoint keeps if it is worth it.

The maths of what is fitted is in reference.prior. The components are the thumbnails' principal
ones, the maps ridge regressions on them. How many components, and how strong the ridge, is what
predicts held-out normal images best, by their likelihood; no anomaly has a say in it. What the map
is worth is then the gain in AUROC of held-out normals against the same with synthesised anomalies,
of a strength that leaves room for one.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.data.anomalies import Donors, synthesise
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.layouts import split_by_patient
from scrd_fast.data.listing import is_paths
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import DataError, NotFiniteError, expect
from scrd_fast.files import as_path, check_writable
from scrd_fast.metrics.bootstrap import intervals
from scrd_fast.metrics.ranking import auroc, rank
from scrd_fast.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scrd_fast.model.resnet import fold_batchnorms
from scrd_fast.model.scrd import SCRD
from scrd_fast.progress import Progress, show_progress
from scrd_fast.records import from_mapping, is_whole
from scrd_fast.reference.anomaly_map import (
    combine_distances,
    cosine_distance,
    upsample_blur_matrix,
)
from scrd_fast.reference.normal_map import FARTHEST, NormalMap
from scrd_fast.reference.preprocess import normalise
from scrd_fast.reference.prior import apply_prior, interpolation_matrix, thumbnails
from scrd_fast.spec import FEWEST_PEOPLE, STRIDES, THUMBNAIL, Prior, ScoringSpec
from scrd_fast.torch_state import own_state
from scrd_fast.training.data import normals_of
from scrd_fast.training.evaluation import MOST_IMAGES

Array = NDArray[np.float64]

COMPONENTS = (0, 4, 8, 16, 32)
RIDGES = (0.0025, 0.025, 0.25)  # per image
_PER_COMPONENT = 3  # people, at least
HELD_OUT = 0.2  # of the images, where there are no others to judge by
# Synthesised anomalies are weakened until no more than this AUROC is reached without a prior.
_ROOM = 0.9
_WEAKER = 0.5
_MOST_STEPS = 8
_FEW, _DOUBT = 64, 0.05  # images whose AUROC tells that of all; twice its standard error at 0.9
_BATCH = 16
_EPOCH = (1 << 30) - 2  # of the anomalies; training and its validation never reach it


@dataclass(frozen=True)
class PriorReport:
    """What a prior is worth on held-out images.

    auroc_without, auroc_with: of normal images against the same with synthesised anomalies;
    strength: of these, in units of the training's; gain: the difference, and its 95 % interval by
    patient (None where it cannot be told). written: whether the checkpoint got it: where the
    interval is above zero, or by force.
    """

    prior: Prior
    auroc_without: float
    auroc_with: float
    gain: tuple[float, float | None, float | None]
    strength: float
    written: bool


@dataclass(frozen=True, eq=False)
class _Seen:
    """What of N images a prior sees: distances (N, h_k, h_k), thumbnails (N, 16, 16) and scale
    weights (N, 3)."""

    distances: tuple[Tensor, ...]
    thumbs: Tensor
    weights: Tensor


@own_state()
def fit_prior(
    checkpoint: str | os.PathLike[str], normals: Any, *,
    out: str | os.PathLike[str] | None = None, validation: Any = None,
    patients: Sequence[str] | None = None, validation_patients: Sequence[str] | None = None,
    patient_from: str | None = None, foreground: tuple[float, float] | None = None,
    force: bool = False, skip_bad: bool = False, seed: int = 0, progress: bool = True,
) -> PriorReport:
    """Fit a normal map on normal images, and write it into a checkpoint where it is worth it.

    checkpoint: as `train` writes it; out: where it goes with its prior, by default the same file.
    normals, validation, patient_from, skip_bad: as `data` and so on of `train`; without validation
    images a fifth of the normals, whole patients, judges, and the map is fitted to the others.
    patients, validation_patients: whom each image is of, where they are images in memory.
    foreground: see spec.Prior; it counts with the normal map. force: write it even where the gain
    is not clear of zero. seed: of which images judge, and of the anomalies.

    An image whose patient is not known counts as one of a person of its own. Nothing is written
    where the gain is not clear of zero; the report says so. Raises DataError for normals of fewer
    than 20 people, for images that are all the same, and for a patient who is in both sets;
    InputError, CheckpointError, NotFiniteError, OutputError.
    """
    expect(is_whole(seed, 0), "seed", "an integer from 0 to 2**63 - 1", repr(seed))
    if foreground is not None:
        Prior(foreground=foreground)  # raises before minutes of work
    path = as_path(checkpoint, "checkpoint")
    target = path if out is None else as_path(out, "out")
    loaded = load_checkpoint(path)
    check_writable(target, "out")
    plain = replace(loaded.spec, prior=None)
    chosen, held = normals_of(normals, validation, patient_from, progress=progress)
    images, whose = _look_at(chosen, "normals", patients, plain, skip_bad, progress)
    if held is not None:
        judging, others_whose = _look_at(held, "validation", validation_patients, plain, skip_bad,
                                         progress)
        for who in sorted({each for each in whose if each} & set(others_whose)):
            raise DataError("validation: expected images of other patients than normals has, got"
                            f" some of patient {who!r} in both")
        fitted, others = np.arange(len(images)), np.arange(len(judging))
    else:
        judging, others_whose = images, whose
        fitted, others = split_by_patient(whose, HELD_OUT, seed)
    people = len(set(_groups([whose[int(i)] for i in fitted]).tolist()))
    if people < FEWEST_PEOPLE:
        raise DataError(f"normals: expected images of at least {FEWEST_PEOPLE} people to average"
                        f" over{'' if held is not None else ' beside those that judge'}, got"
                        f" {people}")
    others = others[np.linspace(0, len(others) - 1, min(len(others), MOST_IMAGES)).astype(int)]
    groups = _groups([others_whose[int(i)] for i in others])

    model = fold_batchnorms(loaded.model.eval())
    with show_progress("prior", enabled=progress) as report:
        def see(batches: Iterable[Tensor], count: int, what: str) -> _Seen:
            return _see(model, plain, batches, lambda done: report(done, count, what))

        known = see(_pixels(images, fitted, plain), len(fitted), "prior: normal images")
        _check_apart(known.thumbs)
        pixels = judging.pixels(others, plain)
        normal = see(pixels.split(_BATCH), len(others), "prior: held-out images")
        best = _fit_best(known, normal, plain, people, report)
        prior = Prior(people, len(fitted), len(best.shift), foreground=foreground,
                      values=best.encode())
        noise = _noise_of(loaded)
        strength, anomalous = _with_anomalies(
            pixels, noise, others, normal, seed, Donors(judging, others, plain),
            lambda noisy: see(noisy.split(_BATCH), len(noisy), "prior: anomalies"))
    both = _Seen(tuple(torch.cat(pair) for pair in zip(
        normal.distances, anomalous.distances, strict=True)),
        torch.cat([normal.thumbs, anomalous.thumbs]),
        torch.cat([normal.weights, anomalous.weights]))
    labels = np.repeat([0, 1], len(others))
    spec = replace(plain, prior=prior)
    without, with_it = _scores(both, plain), _scores(both, spec)
    gain = _gain(np.tile(groups, 2), labels, without, with_it)
    found = PriorReport(prior, auroc(labels, without), auroc(labels, with_it), gain, strength,
                        written=force or (gain[1] is not None and gain[1] > 0))
    if found.written:
        figures = {name: value for name, value in asdict(found).items()
                   if name not in ("prior", "written")}
        save_checkpoint(
            replace(loaded, spec=spec, metrics=loaded.metrics | {"prior": figures}), target)
    return found


def _look_at(
    source: Any, name: str, patients: Sequence[str] | None, spec: ScoringSpec, skip_bad: bool,
    progress: bool,
) -> tuple[ImageSet, Sequence[str | None]]:
    """Images, checked, and whom each of them is of."""
    images = ImageSet(source, name, spec)
    kept = images.check(skip_bad=skip_bad, progress=progress)
    if patients is None:
        return images, images.patients
    argument = "patients" if name == "normals" else "validation_patients"
    in_memory = isinstance(source, np.ndarray | Tensor | list) and not is_paths(source)
    expect(in_memory and len(patients) == len(source), argument,
           f"one for each of the {len(source)} {name} in memory", len(patients))
    return images, [patients[int(i)] for i in kept]


def _groups(patients: Sequence[str | None]) -> NDArray[np.int64]:
    """A number per patient; who is not known is nobody else."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(i if who is None else who, len(numbers))
                     for i, who in enumerate(patients)], np.int64)


def _noise_of(checkpoint: Checkpoint) -> NoiseConfig:
    """The law of the anomalies that the model was trained with; the default one's where its
    checkpoint was imported."""
    stored = checkpoint.training.get("noise")
    return from_mapping(NoiseConfig, stored, "training.noise", partial=True) if stored else (
        NoiseConfig())


def _pixels(images: ImageSet, indices: NDArray[np.int64], spec: ScoringSpec) -> Iterator[Tensor]:
    for first in range(0, len(indices), _BATCH):
        yield images.pixels(indices[first : first + _BATCH], spec)


@torch.no_grad()
def _see(model: SCRD, spec: ScoringSpec, batches: Iterable[Tensor], tell: Callable[[int], None]
         ) -> _Seen:
    """What a prior sees of batches of pixels (n, 3, S, S) in [0, 1]; tell: called with how many
    were."""
    parts: list[list[Tensor]] = []
    done = 0
    for batch in batches:
        inputs = normalise(batch, spec)
        features = model(inputs.contiguous(memory_format=torch.channels_last))
        distances = [cosine_distance(t, s)
                     for t, s in zip(features.teacher, features.student, strict=True)]
        if not all(bool(torch.isfinite(d).all()) for d in distances):
            raise NotFiniteError("normals: the network's distances are not finite for some image;"
                                 " it overflows on it")
        parts.append([*distances, thumbnails(inputs), features.scale_weights])
        done += len(batch)
        tell(done)
    *maps, thumbs, weights = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Seen(tuple(maps), thumbs, weights)


def _check_apart(thumbs: Tensor) -> None:
    """Raise DataError where the images are all the same."""
    if float(thumbs.std(0).max()) < 1e-4:
        raise DataError("normals: expected images that differ, got all of them the same")


# -- the fit ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Described:
    """What is regressed, of N images: distances on the grid (N, 3, 16, 16), and the full ones."""

    seen: _Seen
    grids: Array

    @classmethod
    def of(cls, seen: _Seen) -> "_Described":
        grids = []
        for distance in seen.distances:
            inverse = np.linalg.pinv(interpolation_matrix(distance.shape[1]))
            grids.append(inverse @ distance.numpy().astype(np.float64) @ inverse.T)
        return cls(seen, np.stack(grids, 1))


def _fit_best(known: _Seen, normal: _Seen, spec: ScoringSpec, people: int, report: Progress
              ) -> NormalMap:
    """The normal map that predicts held-out normal images best."""
    fitted = _Described.of(known)
    thumbs = known.thumbs.flatten(1).numpy().astype(np.float64)
    mean = thumbs.mean(0)
    _, singular, axes = np.linalg.svd(thumbs - mean, full_matrices=False)
    deviations = singular / np.sqrt(len(thumbs))
    most = min(int((deviations > 1e-6 * deviations[0]).sum()), people // _PER_COMPONENT)
    tried: list[tuple[float, NormalMap]] = []
    sizes = [count for count in COMPONENTS if count <= most]
    for done, count in enumerate(sizes):
        projection = axes[:count] / deviations[:count, None]
        shift = -projection @ mean
        # Rounded before anything is made of them, as every implementation reads them.
        rounded = projection.astype(np.float16), shift.astype(np.float16)
        terms = _terms(*rounded, known.thumbs)
        for ridge in RIDGES if count else RIDGES[:1]:
            candidate = _fit(fitted, terms, rounded, ridge * len(thumbs), spec)
            tried.append((_likelihood(candidate, normal, spec), candidate))
        report(done + 1, len(sizes), "prior: normal maps")
    return max(tried, key=lambda pair: pair[0])[1]


def _terms(projection: NDArray[np.float16], shift: NDArray[np.float16], thumbs: Tensor) -> Array:
    """phi (N, J); see reference.prior."""
    flat = thumbs.flatten(1).numpy().astype(np.float64)
    z = np.clip(flat @ projection.astype(np.float64).T + shift, -FARTHEST, FARTHEST)
    return np.concatenate([np.ones((len(z), 1)), z, z * z - 1], axis=1)


def _regress(terms: Array, values: Array, ridge: float) -> Array:
    """Coefficients (J, ...) of values (N, ...); what all images share is not shrunk."""
    penalty = ridge * np.eye(terms.shape[1])
    penalty[0, 0] = 0
    flat = np.linalg.solve(terms.T @ terms + penalty, terms.T @ values.reshape(len(values), -1))
    return flat.reshape(-1, *values.shape[1:]).astype(np.float64)


def _predict(terms: Array, coefficients: NDArray[Any]) -> Array:
    predicted: Array = np.tensordot(terms, coefficients, axes=1)
    return predicted


def _fit(fitted: _Described, terms: Array, described: tuple[NDArray[np.float16], ...],
         ridge: float, spec: ScoringSpec) -> NormalMap:
    """The normal map on these components: its means, then the spreads of what is left."""
    expected = _regress(terms, fitted.grids, ridge)
    predicted = _predict(terms, expected)
    squares = _squares(fitted.seen.distances, predicted, spec)
    floor = 1e-4 * squares.mean(axis=(0, 2, 3), keepdims=True) + 1e-30
    # A single square says less of its expectation than a distance does: a stronger ridge.
    log_spread = _regress(terms, 0.5 * np.log(squares + floor), 3 * ridge)
    usual = np.exp(_predict(terms, log_spread)).mean(axis=(0, 2, 3))
    log_spread[0] -= np.log(usual)[:, None, None]
    level = predicted.mean(axis=(0, 2, 3))
    arrays = (*described, expected, log_spread, level)
    return NormalMap(*(each.astype(np.float16).astype(np.float32) for each in arrays))


def _squares(distances: Sequence[Tensor], predicted: Array, spec: ScoringSpec) -> Array:
    """Mean squares in each cell (N, 3, 16, 16) of what a prediction leaves of each scale's part of
    the map."""
    size, cell = spec.input_size, spec.input_size // THUMBNAIL
    out = np.empty_like(predicted)
    for k, distance in enumerate(distances):
        side = size // STRIDES[k]
        b = interpolation_matrix(side)
        u = upsample_blur_matrix(size, side, float(spec.blur_sigma)).astype(np.float32)
        for first in range(0, len(distance), 64):
            part = slice(first, first + 64)
            left = distance[part].numpy() - b @ predicted[part, k] @ b.T
            whole = u @ left.astype(np.float32) @ u.T
            cells = whole.reshape(len(whole), THUMBNAIL, cell, THUMBNAIL, cell)
            out[part, k] = np.square(cells).mean(axis=(2, 4))
    return out


def _likelihood(candidate: NormalMap, normal: _Seen, spec: ScoringSpec) -> float:
    """Mean log-likelihood (up to a constant) of what is left of held-out images in each cell, were
    it normal with the predicted spread; of each scale, with the usual spread that fits best."""
    terms = _terms(candidate.projection.astype(np.float16), candidate.shift.astype(np.float16),
                   normal.thumbs)
    squares = _squares(normal.distances, _predict(terms, candidate.expected), spec)
    log_spread = _predict(terms, candidate.log_spread)
    relative = (squares * np.exp(-2 * log_spread)).mean(axis=(0, 2, 3))
    return float(-(log_spread.mean(axis=(0, 2, 3)) + 0.5 * np.log(relative)).sum())


# -- what it is worth ------------------------------------------------------------------------------


def _scores(seen: _Seen, spec: ScoringSpec) -> NDArray[np.float32]:
    distances: Sequence[Tensor] = seen.distances
    if spec.prior is not None:
        distances = apply_prior(distances, seen.thumbs, spec)
    parts = []
    for first in range(0, len(seen.thumbs), 64):
        part = slice(first, first + 64)
        result = combine_distances([d[part] for d in distances], seen.weights[part], spec,
                                   maps=False)
        parts.append(result.score(spec))
    return torch.cat(parts).numpy()


def _with_anomalies(
    pixels: Tensor, noise: NoiseConfig, indices: NDArray[np.int64], normal: _Seen, seed: int,
    donors: Donors, see: Callable[[Tensor], _Seen],
) -> tuple[float, _Seen]:
    """The share of the strength at which anomalies can just be told from normal images without a
    prior, and the images with such."""
    epochs = np.full(len(indices), _EPOCH)
    usual = _scores(normal, donors.spec)
    some = np.linspace(0, len(indices) - 1, min(len(indices), _FEW)).astype(int)

    def found(which: NDArray[np.int64], seen: _Seen) -> float:
        labels = np.repeat([0, 1], len(which))
        return auroc(labels, np.concatenate([usual[which], _scores(seen, donors.spec)]))

    strength = 1.0
    for left in reversed(range(_MOST_STEPS)):
        noisy = synthesise(pixels, replace(noise, strength=strength * noise.strength), seed=seed,
                           epochs=epochs, indices=indices, donors=donors).pixels
        # Most strengths are far too great, as a part of the images tells.
        if left == 0 or found(some, see(noisy[some])) <= _ROOM + _DOUBT:
            seen = see(noisy)
            if left == 0 or found(np.arange(len(indices)), seen) <= _ROOM:
                break
        strength *= _WEAKER
    return strength, seen


def _gain(groups: NDArray[np.int64], labels: NDArray[np.int64], without: NDArray[np.float32],
          with_it: NDArray[np.float32]) -> tuple[float, float | None, float | None]:
    """Difference of the AUROCs, and its interval by patient."""
    first, second = rank(labels, without), rank(labels, with_it)

    def figures(weights: Array) -> dict[str, Array]:
        # Halved and raised, a difference lies between 0 and 1, as `intervals` wants it.
        return {"gain": (1 + second.steps(weights).auroc() - first.steps(weights).auroc()) / 2}

    value = auroc(labels, with_it) - auroc(labels, without)
    interval = intervals(groups, labels, figures)["gain"]
    if interval is None:
        return value, None, None
    return value, 2 * interval.low - 1, 2 * interval.high - 1


