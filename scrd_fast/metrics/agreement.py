"""How well scores and maps agree with a reference's, and the limits of the fidelity contract.

Relative error means max|a - b| / max|b| over all images.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import expect
from scrd_fast.metrics.ranking import auroc, rank_correlation
from scrd_fast.records import is_number

JUDGED_FROM = 200  # ranks and an AUROC of fewer images say little
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

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            expect(limit is None or is_number(limit), f"limits.{name}", "None or a finite number",
                   limit)

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


def relative_error(value: Any, reference: Any) -> float:
    """max|a - b| / max|b|."""
    value, reference = np.asarray(value), np.asarray(reference)
    scale = float(np.abs(reference).max())
    return float(np.abs(value - reference).max()) / (scale if scale > 0 else 1.0)


def map_error(maps: Any, reference: Any) -> float:
    """max|a - b| / (max b - min b) of maps (N, S, S), all together."""
    maps, reference = np.asarray(maps), np.asarray(reference)
    spread = float(reference.max() - reference.min())
    return float(np.abs(maps - reference).max()) / (spread if spread > 0 else 1.0)


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
    labels: NDArray[np.int64] | None, scores: Any, maps: Any, reference_scores: Any,
    reference_maps: Any,
) -> Report:
    """Figures of scores (N,) and maps (N, S, S) against the reference's.

    labels: (N,), 0 = normal, 1 = anomalous, -1 = neither; None where they are not known.
    """
    n = len(scores)
    a, b = np.asarray(scores, np.float64), np.asarray(reference_scores, np.float64)
    normal = b if labels is None else b[labels == 0]
    rank = area = change = None
    if n >= JUDGED_FROM:
        # Where all scores are the same there is no order, and none that agrees.
        rank = float(np.nan_to_num(rank_correlation(a, b)))
        if labels is not None:
            known = labels >= 0
            area = auroc(labels[known], a[known])
            change = abs(area - auroc(labels[known], b[known]))
    return Report(
        images=n,
        map_error=map_error(maps, reference_maps),
        score_error=relative_error(scores, reference_scores),
        rank_correlation=rank,
        auroc=area,
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
