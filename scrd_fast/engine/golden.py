"""What an engine gave when it was built, and whether it still does, here.

`golden.safetensors` holds eight images made by a seeded procedure with the reference's scores and
maps for them ("scores", "maps"), the engine's own ("built_scores", "built_maps"), and the engine's
own scores of a larger probe set ("probe_scores"), whose images are made again by their seed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import BATCH
from scrd_fast.errors import EngineFileError, FidelityError, explain_missing
from scrd_fast.files import Contents
from scrd_fast.metrics.agreement import (
    JUDGED_FROM,
    LIMITS,
    ROUNDING,
    flipped,
    map_error,
    relative_error,
)
from scrd_fast.metrics.ranking import rank_correlation
from scrd_fast.progress import Progress, silent

_NAMES = ("scores", "maps", "built_scores", "built_maps", "probe_scores", "probe_digest")


@np.errstate(all="warn", under="ignore")  # a caller may have made all of them errors
def replay(engine: Engine, golden: Contents, *, alike: bool, whole: bool,
           progress: Progress = silent) -> dict[str, float]:
    """Score the golden images again; returns the figures, raises FidelityError where they miss.

    alike: whether this machine and its libraries are like those that built the engine; it must
    repeat itself then. Elsewhere its figures must keep the limits of its precision. whole: the
    larger probe set, too, for ranks and decisions.
    """
    try:
        tensors = _read(golden)
        images = _images(tensors)
        reference, maps, built, built_maps, probe_scores, digest = (tensors[n] for n in _NAMES)
        if maps.shape[-1] != engine.spec.input_size:
            raise ValueError("tensors of other shapes")
    except Exception as error:  # the library has errors of its own for what is no such file
        raise EngineFileError(f"{engine.path}: its golden images cannot be read: {error}; build it"
                              " again from its checkpoint") from error
    limits = engine.manifest.fidelity.limits
    ours = engine.score(images)
    figures = {"score_error": relative_error(ours.scores, reference),
               "map_error": map_error(ours.maps, maps),
               "score_change": relative_error(ours.scores, built),
               "map_change": map_error(ours.maps, built_maps)}
    was = {"score_error": relative_error(built, reference),
           "map_error": map_error(built_maps, maps)}
    allowed = {name: 2 * max(was[name], 1e-3) if getattr(limits, name) is None
               else getattr(limits, name) for name in was}
    if alike:
        allowed |= dict.fromkeys(("score_change", "map_change"), ROUNDING)
    _check(engine, figures, allowed)
    if whole:
        probe = probe_images(engine.spec.input_size)
        if not np.array_equal(digest_of(probe), digest):
            raise FidelityError(f"{engine.path}: this NumPy or SciPy makes other probe images than"
                                " those of the build; load_engine(verify=True) needs none")
        a = scores_of(probe, lambda batch: engine.score(batch, maps=False).scores, progress)
        b = probe_scores
        figures |= {"rank_lost": 1 - rank_correlation(a, b),
                    "flipped": flipped(a, b, b)}
        _check(engine, figures, {
            "rank_lost": 0.001 if limits.rank_correlation is None else 1 - limits.rank_correlation,
            "flipped": 1.0 if limits.flipped is None else limits.flipped})
    return figures


def check_same_scores(old: Contents, new: Contents, precisions: Sequence[str]) -> None:
    """Raise FidelityError unless two engines, whose members these are, have the same model and give
    the same scores within the looser of the fidelity limits of their precisions.

    Raises EngineFileError where `old` cannot be read.
    """
    try:
        before = _read(old)
    except Exception as error:  # as in `replay`
        raise EngineFileError(f"its golden images cannot be read: {error}") from error
    after = _read(new)
    same = all(before[n].shape == after[n].shape for n in _NAMES) and (
        relative_error(after["scores"], before["scores"]) <= ROUNDING
        and map_error(after["maps"], before["maps"]) <= ROUNDING)
    if not same:
        raise FidelityError("it is of another model")
    if not np.array_equal(after["probe_digest"], before["probe_digest"]):
        raise FidelityError("its probe images were others")
    a, b = after["probe_scores"], before["probe_scores"]
    limits = [LIMITS[precision] for precision in precisions]
    allowed = max(limit.flipped or 0.0 for limit in limits)
    if (share := flipped(a, b, b)) > allowed:
        raise FidelityError(f"{share:.2%} of the decisions about probe images are others now,"
                            f" {allowed:.1%} may be")
    least = min(limit.rank_correlation or 0.999 for limit in limits)
    if (ranks := rank_correlation(a, b)) < least:
        raise FidelityError(f"its scores have another order (rank correlation {ranks:.4f},"
                            f" expected at least {least:g})")


def renew(engine: Engine, golden: Contents) -> bytes:
    """The member for an engine that was compiled again and whose replay was good: what it gives
    here takes the place of what the engine before it gave. Ranks and decisions stay those of the
    first build, from which no chain of compilations may drift."""
    tensors = load_tensors(bytes(golden))
    result = engine.score(_images(tensors))
    assert result.maps is not None
    return save_tensors(tensors | {"built_scores": result.scores, "built_maps": result.maps})


def _read(golden: Contents) -> dict[str, NDArray[Any]]:
    """The tensors of the member; raises ValueError, and what the library raises, for others."""
    tensors = load_tensors(bytes(golden))
    count, side = len(_images(tensors)), tensors["maps"].shape[-1]
    shapes = [(count,), (count, side, side)] * 2 + [(JUDGED_FROM,), (32,)]
    if count == 0 or [tuple(tensors[n].shape) for n in _NAMES] != shapes:
        raise ValueError("tensors of other shapes")
    kinds = {name: np.uint8 if name == "probe_digest" else np.float32 for name in _NAMES}
    if any(tensors[name].dtype != kind for name, kind in kinds.items()) or any(
            image.dtype != np.uint8 for image in _images(tensors)):
        raise ValueError("tensors of other types")
    return tensors


def _images(tensors: Mapping[str, NDArray[Any]]) -> list[NDArray[np.uint8]]:
    count = sum(name.startswith("image") for name in tensors)
    return [tensors[f"image{i}"] for i in range(count)]


def _check(engine: Engine, figures: dict[str, float], allowed: dict[str, float]) -> None:
    for name, limit in allowed.items():
        if not figures[name] <= limit:
            raise FidelityError(f"{engine.path}: this machine does not reproduce the golden images:"
                                f" {name} expected <= {limit:.3g}, got {figures[name]:.3g}")


def probe_images(side: int) -> list[NDArray[np.uint8]]:
    """The larger probe set, made again; needs SciPy."""
    with explain_missing("the larger probe set (load_engine(verify=True) needs none)"):
        from scrd_fast.data.golden_images import PROBE_SEED, golden_images

    return golden_images(JUDGED_FROM, side, PROBE_SEED)


def digest_of(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The SHA-256 of images, as 32 numbers."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.tobytes())
    return np.frombuffer(digest.digest(), np.uint8)


def scores_of(images: Sequence[NDArray[np.uint8]], score: Callable[[Any], NDArray[np.float32]],
              progress: Progress) -> NDArray[np.float32]:
    """The scores (N,) of images, by a function that scores a batch."""
    parts = []
    for start in range(0, len(images), BATCH):
        progress(start, len(images), "scoring golden images")
        parts.append(score(images[start : start + BATCH]))
    return np.concatenate(parts)
