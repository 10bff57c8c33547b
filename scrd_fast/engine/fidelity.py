"""Does an engine give the reference model's scores? Figures and limits.

Relative error means max|a - b| / max|b| over the probe set.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scrd_fast.engine.backends.runner import Scorer
from scrd_fast.engine.golden import golden_images
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_pixels
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.progress import Progress
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.evaluation import auroc as auroc_of
from scrd_fast.training.noise import NoiseConfig, synthesise

# Ranks and an AUROC of fewer images say little.
JUDGED_FROM = 200
FEW = 24
BATCH = 8
PROBE_SEED = 20250313
# What the order of sums moves scores by at most, a share of the largest: an engine repeats itself
# to this on a machine like the one that built it.
ROUNDING = 1e-5


@dataclass(frozen=True)
class Limits:
    """Largest (or smallest, for the rank correlation) allowed figures; None: not limited."""

    map_error: float | None = None
    score_error: float | None = None
    rank_correlation: float | None = None
    auroc_change: float | None = None
    flipped: float | None = None

    def need_ranks(self) -> bool:
        """Whether they can only be judged on many images."""
        return self.rank_correlation is not None or self.auroc_change is not None


# Few bits of mantissa in every layer: values move, their order must not.
_ROUNDED = Limits(rank_correlation=0.999, auroc_change=0.002, flipped=0.002)
# Features move by whole steps of 8 bits.
_QUANTISED = Limits(rank_correlation=0.995, auroc_change=0.005, flipped=0.005)
LIMITS = {
    # The same arithmetic in another order: rounding only.
    "fp32": Limits(map_error=1e-4, score_error=1e-4, flipped=0.0),
    "bf16": _ROUNDED,
    "fp16": _ROUNDED,
    "int8": _QUANTISED,
    "fp8": _QUANTISED,
}


@dataclass(frozen=True)
class Probe:
    """Probe pixels (N, 3, S, S) in [0, 1]; labels (N,): 0 = normal, 1 = with a synthesised anomaly,
    -1 = odd content; None = not known."""

    pixels: Tensor
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Report:
    """Figures of one engine against the reference; None where the probe set cannot tell.

    auroc: of synthesised anomalies against normals. flipped: see `flipped`; without labels the
    thresholds are of all images.
    """

    images: int
    map_error: float
    score_error: float
    rank_correlation: float | None
    auroc: float | None
    auroc_change: float | None
    flipped: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_probe(
    spec: ScoringSpec, images: Any | None, count: int, seed: int = PROBE_SEED
) -> Probe:
    """The probe set: the user's normal images with synthesised anomalies, else golden images.

    images: normals as ops.preprocess takes them, or None. At most count / 2 of them are used,
    each once as it is and once with a noise patch; fewer are used with several patches each, so
    that there are at least `count` images to judge. seed: of golden images and noise patches.
    """
    if images is None:
        return Probe(to_pixels(golden_images(count, spec.input_size, seed), spec), None)
    chosen = np.linspace(0, len(images) - 1, min(count // 2, len(images))).astype(int)
    some = images[chosen] if isinstance(images, np.ndarray) else [images[i] for i in chosen]
    pixels = to_pixels(some, spec).contiguous()
    # Stronger patches than in training: an anomaly that training fits is no probe of ranks.
    noise = NoiseConfig(strength=0.8, max_share=0.25, min_side=min(10, spec.input_size // 8),
                        channels="shared")
    n = len(pixels)
    copies = max(1, -(-(count - n) // n))
    again = pixels.repeat(copies, 1, 1, 1)
    epochs, indices = np.divmod(np.arange(copies * n), n)
    noisy = synthesise(again, noise, seed=seed, epochs=epochs, indices=indices)
    odd = odd_pixels(spec)
    return Probe(torch.cat([pixels, noisy, odd]), np.repeat([0, 1, -1], [n, copies * n, len(odd)]))


def odd_pixels(spec: ScoringSpec) -> Tensor:
    """What a scanner gives by accident, (N, 3, S, S) in [0, 1]: black, white, grey, noise, and the
    extreme contrasts of a checkerboard, of stripes and of one bright pixel."""
    side = spec.input_size
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    generator = torch.Generator().manual_seed(PROBE_SEED)
    grey = [torch.full((side, side), value) for value in (0.0, 1.0, 0.5)]
    sharp = [((x + y) % 2).float(), (x // 8 % 2).float(),
             ((x == side // 2) & (y == side // 2)).float()]
    noise = torch.rand(3, side, side, generator=generator)
    return torch.stack([*(image.expand(3, -1, -1) for image in grey + sharp), noise])


class Judge:
    """Holds scorers to the reference model, which scores each probe set once."""

    def __init__(self, checkpoint: Checkpoint, images: Any | None, progress: Progress) -> None:
        """images: as in `make_probe`."""
        self.spec, self._model, self._images = checkpoint.spec, checkpoint.model, images
        self._progress = progress
        self._probes: dict[bool, Probe] = {}
        self._references: dict[bool, tuple[Tensor, Tensor]] = {}

    def probe(self, few: bool) -> Probe:
        if few not in self._probes:
            self._probes[few] = make_probe(self.spec, self._images, FEW if few else JUDGED_FROM)
        return self._probes[few]

    def _reference(self, few: bool) -> tuple[Tensor, Tensor]:
        """Scores (N,) and maps (N, S, S)."""
        if few not in self._references:
            self._references[few] = self._by_reference(few)
        return self._references[few]

    def _by_reference(self, few: bool) -> tuple[Tensor, Tensor]:
        pixels = self.probe(few).pixels
        scores: list[Tensor] = []
        maps: list[Tensor] = []
        for batch in pixels.split(BATCH):
            self._progress(BATCH * len(maps), len(pixels), "scoring by the reference")
            result, _ = score_pixels(self._model, self.spec, batch)
            assert result.map is not None
            scores.append(result.score(self.spec))
            maps.append(result.map)
        return torch.cat(scores), torch.cat(maps)

    def report(self, scorer: Scorer, *, few: bool) -> Report:
        """Figures of a scorer; few: on a few images, which show the largest error but not ranks.
        Raises NotFiniteError; torch_network.first_nonfinite tells the layer."""
        probe, reference = self.probe(few), self._reference(few)
        parts: list[tuple[Any, ...]] = []
        for batch in probe.pixels.split(BATCH):
            self._progress(BATCH * len(parts), len(probe.pixels), "checking against the reference")
            parts.append(scorer.submit(batch.permute(0, 2, 3, 1).numpy(), True).get()[:2])
        scores, maps = (torch.from_numpy(np.concatenate(column))
                        for column in zip(*parts, strict=True))
        return compare(probe, scores, maps, *reference)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """max|a - b| / max|b|."""
    scale = float(reference.abs().max())
    return float((value - reference).abs().max()) / (scale if scale > 0 else 1.0)


def rank_correlation(scores: Any, reference: Any) -> float:
    """Spearman's, of scores (N,)."""
    from scipy.stats import spearmanr

    return float(spearmanr(scores, reference).statistic)


def flipped(scores: Any, reference: Any, normal: Any) -> float:
    """Share of decisions about scores (N,) that differ from the reference's, over ten thresholds:
    the 90th to the 99th percentile of the reference's scores of normal images, each moved to the
    middle between the scores beside it, of whichever images. Scores that only rounding tells apart
    count as one: what hangs on that is no decision."""
    values = np.unique(reference)
    rounding = ROUNDING * float(np.abs(values).max())
    last = np.append(np.flatnonzero(np.diff(values) > rounding), len(values) - 1)  # of each such
    above = np.append(values, values[-1] + max(abs(values[-1]), 1.0) * 1e-3)[last + 1]
    percentiles = np.quantile(normal, np.linspace(0.90, 0.99, 10))
    below = np.searchsorted(values, percentiles, side="right") - 1
    thresholds = ((values[last] + above) / 2)[np.searchsorted(last, below), None]
    return float(np.mean((scores > thresholds) != (reference > thresholds)))


def compare(
    probe: Probe, scores: Tensor, maps: Tensor, reference_scores: Tensor, reference_maps: Tensor
) -> Report:
    """Figures of scores (N,) and maps (N, S, S) against the reference's."""
    n = len(probe.pixels)
    spread = float(reference_maps.max() - reference_maps.min())
    map_error = float((maps - reference_maps).abs().max()) / (spread if spread > 0 else 1.0)
    a, b = scores.double().numpy(), reference_scores.double().numpy()
    labels = probe.labels
    normal = b if labels is None else b[labels == 0]
    rank = auroc = change = None
    if n >= JUDGED_FROM:
        rank = rank_correlation(a, b)
        if labels is not None:
            known = labels >= 0
            auroc = auroc_of(labels[known], a[known])
            change = abs(auroc - auroc_of(labels[known], b[known]))
    return Report(
        images=n,
        map_error=map_error,
        score_error=relative_error(scores, reference_scores),
        rank_correlation=rank,
        auroc=auroc,
        auroc_change=change,
        flipped=flipped(a, b, normal),
    )


def broken_limits(report: Report, limits: Limits) -> list[str]:
    """One text per limit that the report does not keep; empty where all hold."""
    broken = []
    for name, limit in asdict(limits).items():
        figure = getattr(report, name)
        if limit is None or figure is None:
            continue
        good = figure >= limit if name == "rank_correlation" else figure <= limit
        if not good:
            sign = ">=" if name == "rank_correlation" else "<="
            broken.append(f"{name}: expected {sign} {limit:g}, got {figure:.3g}")
    return broken
