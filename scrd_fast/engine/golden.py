"""What an engine gave when it was built, and whether it still does, here.

`golden.safetensors` holds eight images made by a seeded procedure with the reference's scores and
maps for them ("scores", "maps"), the engine's own ("built_scores", "built_maps"), and the engine's
own scores of a larger probe set ("probe_scores"), whose images are made again by their seed.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from scrd_fast.backends.runner import Runner
from scrd_fast.data.golden_images import PROBE_SEED, golden_images
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.stream import BATCH
from scrd_fast.errors import EngineFileError, FidelityError
from scrd_fast.metrics import agreement
from scrd_fast.metrics.ranking import rank_correlation
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.progress import Progress, silent

GOLDEN_COUNT = 8
_NAMES = ("scores", "maps", "built_scores", "built_maps", "probe_scores", "probe_digest")


def record(checkpoint: Checkpoint, runner: Runner, progress: Progress) -> bytes:
    """The member of an engine file, from a runner that was just built."""
    spec = checkpoint.spec
    images = golden_images(GOLDEN_COUNT, spec.input_size)
    reference, _ = score_images(checkpoint.model, spec, images)
    assert reference.map is not None
    with closing(runner.scorer()) as scorer:
        def score(batch: Sequence[Any], maps: bool) -> tuple[Any, ...]:
            return scorer.submit(runner.inputs(list(batch), "batch"), maps).get()

        scores, maps, _ = score(images, True)
        probe = _probe(spec.input_size)
        probe_scores = _scored(probe, lambda batch: score(batch, False)[0], progress)
    tensors = {f"image{i}": torch.from_numpy(image) for i, image in enumerate(images)}
    tensors |= {"scores": reference.score(spec), "maps": reference.map,
                "built_scores": torch.from_numpy(scores), "built_maps": torch.from_numpy(maps),
                "probe_scores": probe_scores, "probe_digest": _digest(probe)}
    return save_tensors(tensors)


def replay(engine: Engine, golden: bytes, *, alike: bool, whole: bool,
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
        limits = agreement.Limits(**engine.manifest.fidelity["limits"])
        if not all(v is None or type(v) in (int, float) for v in asdict(limits).values()):
            raise ValueError("limits that are no numbers")
    except Exception as error:  # the library has errors of its own for what is no such file
        raise EngineFileError(f"{engine.path}: its golden images cannot be read: {error}; build it"
                              " again from its checkpoint") from error
    result = engine.score(images)
    assert result.maps is not None
    ours, our_maps = torch.from_numpy(result.scores), torch.from_numpy(result.maps)
    figures = {"score_error": agreement.relative_error(ours, reference),
               "map_error": _map_error(our_maps, maps),
               "score_change": agreement.relative_error(ours, built),
               "map_change": _map_error(our_maps, built_maps)}
    was = {"score_error": agreement.relative_error(built, reference),
           "map_error": _map_error(built_maps, maps)}
    allowed = {name: 2 * max(was[name], 1e-3) if getattr(limits, name) is None
               else getattr(limits, name) for name in was}
    if alike:
        allowed |= dict.fromkeys(("score_change", "map_change"), agreement.ROUNDING)
    _check(engine, figures, allowed)
    if whole:
        probe = _probe(engine.spec.input_size)
        if not torch.equal(_digest(probe), digest):
            raise FidelityError(f"{engine.path}: this NumPy or SciPy makes other probe images than"
                                " those of the build; load_engine(verify=True) needs none")
        again = _scored(probe, lambda batch: engine.score(batch, maps=False).scores, progress)
        a, b = again.double().numpy(), probe_scores.double().numpy()
        figures |= {"rank_lost": 1 - rank_correlation(a, b),
                    "flipped": agreement.flipped(a, b, b)}
        _check(engine, figures, {
            "rank_lost": 0.001 if limits.rank_correlation is None else 1 - limits.rank_correlation,
            "flipped": 1.0 if limits.flipped is None else limits.flipped})
    return figures


def check_same_scores(old: bytes, new: bytes, precisions: Sequence[str]) -> None:
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
        agreement.relative_error(after["scores"], before["scores"]) <= agreement.ROUNDING
        and _map_error(after["maps"], before["maps"]) <= agreement.ROUNDING)
    if not same:
        raise FidelityError("it is of another model")
    if not torch.equal(after["probe_digest"], before["probe_digest"]):
        raise FidelityError("its probe images were others")
    a, b = (t["probe_scores"].double().numpy() for t in (after, before))
    limits = [agreement.LIMITS[precision] for precision in precisions]
    allowed = max(limit.flipped or 0.0 for limit in limits)
    if (flipped := agreement.flipped(a, b, b)) > allowed:
        raise FidelityError(f"{flipped:.2%} of the decisions about probe images are others now,"
                            f" {allowed:.1%} may be")
    least = min(limit.rank_correlation or 0.999 for limit in limits)
    if (ranks := rank_correlation(a, b)) < least:
        raise FidelityError(f"its scores have another order (rank correlation {ranks:.4f},"
                            f" expected at least {least:g})")


def renew(engine: Engine, golden: bytes) -> bytes:
    """The member for an engine that was compiled again and whose replay was good: what it gives
    here takes the place of what the engine before it gave. Ranks and decisions stay those of the
    first build, from which no chain of compilations may drift."""
    tensors = load_tensors(golden)
    result = engine.score(_images(tensors))
    assert result.maps is not None
    return save_tensors(tensors | {"built_scores": torch.from_numpy(result.scores),
                                   "built_maps": torch.from_numpy(result.maps)})


def _read(golden: bytes) -> dict[str, Tensor]:
    """The tensors of the member; raises ValueError, and what the library raises, for others."""
    tensors = load_tensors(golden)
    count, side = len(_images(tensors)), tensors["maps"].shape[-1]
    shapes = [(count,), (count, side, side)] * 2 + [(agreement.JUDGED_FROM,), (32,)]
    if count == 0 or [tuple(tensors[n].shape) for n in _NAMES] != shapes:
        raise ValueError("tensors of other shapes")
    return tensors


def _images(tensors: Mapping[str, Tensor]) -> list[NDArray[np.uint8]]:
    count = sum(name.startswith("image") for name in tensors)
    return [tensors[f"image{i}"].numpy() for i in range(count)]


def _check(engine: Engine, figures: dict[str, float], allowed: dict[str, float]) -> None:
    for name, limit in allowed.items():
        if not figures[name] <= limit:
            raise FidelityError(f"{engine.path}: this machine does not reproduce the golden images:"
                                f" {name} expected <= {limit:.3g}, got {figures[name]:.3g}")


def _probe(side: int) -> list[NDArray[np.uint8]]:
    return golden_images(agreement.JUDGED_FROM, side, PROBE_SEED)


def _digest(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    digest = hashlib.sha256()
    for image in images:
        digest.update(image.tobytes())
    return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)


def _scored(images: Sequence[NDArray[np.uint8]], score: Callable[[Any], NDArray[np.float32]],
            progress: Progress) -> Tensor:
    parts = []
    for start in range(0, len(images), BATCH):
        progress(start, len(images), "scoring golden images")
        parts.append(score(images[start : start + BATCH]))
    return torch.from_numpy(np.concatenate(parts))


def _map_error(maps: Tensor, reference: Tensor) -> float:
    spread = float(reference.max() - reference.min()) or 1.0
    return float((maps - reference).abs().max()) / spread
