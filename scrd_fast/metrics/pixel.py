"""How well anomaly maps find the pixels of anomalies.

All pixels of all images count alike; a pixel is called anomalous where its value lies above the
threshold. `gather_pixels` sorts them once, exactly and without bins, for all the figures here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scrd_fast.errors import NotFiniteError, expect
from scrd_fast.metrics.ranking import Array, Steps, count_above, threshold_between

FPR_LIMIT = 0.3


@dataclass(frozen=True, eq=False)
class Pixels:
    """The values of all pixels, by what the masks say of them.

    normal (n,): rising; anomalous (m,): falling; shares (m,): of the same pixels, one over the
    number of pixels in the connected region of each; regions: how many there are.
    """

    normal: Array
    anomalous: Array
    shares: NDArray[np.float64]
    regions: int

    def auroc(self) -> float:
        """Area under the ROC curve of all pixels, ties counted by half."""
        return float(self._steps[0].auroc())

    def average_precision(self) -> float:
        """As `ranking.average_precision`, of all pixels."""
        return float(self._steps[0].average_precision())

    def aupro(self, limit: float = FPR_LIMIT) -> float:
        """Area under the per-region overlap, see `region_overlap`, up to a false-positive rate."""
        expect(0 < limit <= 1, "limit", "a share above 0, up to 1", limit)
        steps, starts = self._steps
        return float(region_overlap(steps, np.add.reduceat(self.shares, starts), limit))

    def best_dice(self) -> tuple[float, float]:
        """The largest Dice coefficient of any threshold, over all pixels together, and the lowest
        threshold that has it. The coefficient is 2 |A & B| / (|A| + |B|).

        It has seen the masks that it is judged by: an upper limit, optimistic for new images.
        """
        steps, starts = self._steps
        dice = steps.f1()
        best = len(dice) - 1 - int(np.argmax(dice[::-1]))
        value = self.anomalous[starts[best]]
        below = [self.normal[: np.searchsorted(self.normal, value)][-1:]]
        if best + 1 < len(starts):
            below.append(self.anomalous[starts[best + 1]][None])
        lower = np.concatenate(below)
        if len(lower):
            return float(dice[best]), threshold_between(lower.max(), value)
        return float(dice[best]), float(np.nextafter(value, -np.inf))

    @cached_property
    def _steps(self) -> tuple[Steps, NDArray[np.intp]]:
        """Also where each distinct value of anomalous pixels begins."""
        values = self.anomalous
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        hits = np.diff(starts, append=len(values))
        above, alarms = count_above(self.normal, values[starts])
        return Steps(hits, above, alarms, np.asarray(len(self.normal))), starts


def gather_pixels(maps: Sequence[Array] | Array, masks: Sequence[Array] | Array) -> Pixels:
    """Sort the pixels of maps, each (H, W) float32 or float64, by masks (H, W) of bool.

    An array (N, H, W) or a list of any sizes. Regions are 8-connected pixels of a mask; both kinds
    of pixels must be there. Memory besides the maps: 4 bytes per normal pixel (8 of float64), about
    150 per anomalous pixel with the figures. Raises InputError, NotFiniteError.
    """
    check_maps(maps, masks)
    dtype = np.result_type(*{map_.dtype for map_ in maps})
    anomalous_count = sum(int(np.count_nonzero(mask)) for mask in masks)
    normal = np.empty(sum(mask.size for mask in masks) - anomalous_count, dtype)
    anomalous, shares = np.empty(anomalous_count, dtype), np.empty(anomalous_count)
    expect(len(normal) > 0 and len(anomalous) > 0, "masks", "normal and anomalous pixels",
           f"{len(normal)} and {len(anomalous)}")
    regions = at_normal = at_anomalous = 0
    for map_, mask in zip(maps, masks, strict=True):
        outside, inside = map_[~mask], map_[mask]
        normal[at_normal : at_normal + len(outside)] = outside
        at_normal += len(outside)
        if not len(inside):
            continue
        end = at_anomalous + len(inside)
        anomalous[at_anomalous:end] = inside
        shares[at_anomalous:end], count = region_shares(mask)
        regions, at_anomalous = regions + count, end
    normal.sort()
    order = np.argsort(anomalous)[::-1]
    return Pixels(normal, anomalous[order], shares[order], regions)


def check_maps(maps: Sequence[Array] | Array, masks: Sequence[Array] | Array) -> None:
    """Raise InputError unless these are maps and masks, NotFiniteError for NaN or infinity."""
    expect(len(maps) == len(masks) and len(maps) > 0, "masks", f"one per map ({len(maps)}), from"
           " one on", len(masks))
    for i, (map_, mask) in enumerate(zip(maps, masks, strict=True)):
        expect(map_.ndim == 2 and map_.size > 0 and map_.dtype in (np.float32, np.float64),
               f"maps[{i}]", "(H, W) float32 or float64", f"{map_.shape} {map_.dtype}")
        expect(mask.shape == map_.shape and mask.dtype == bool, f"masks[{i}]",
               f"{map_.shape} bool", f"{mask.shape} {mask.dtype}")
        if not np.isfinite(map_).all():
            raise NotFiniteError(f"maps[{i}]: expected finite values, got NaN or infinity among"
                                 " them")


def region_shares(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """One over the size of the 8-connected region of each pixel of a mask (H, W), in the order of
    mask.nonzero(), and the number of regions."""
    import cv2

    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside = labels[mask]
    return 1 / np.bincount(inside)[inside], count - 1


def region_overlap(steps: Steps, shares: Any, limit: float) -> Array:
    """Area (...,) under the per-region overlap (PRO) over the false-positive rate, 0 to `limit`.

    At a threshold PRO is the mean over the connected regions, each with the same weight, of the
    share of a region's pixels above it; the false-positive rate is that of the normal pixels of all
    images. The area is divided by `limit`, so that 1 is the best (Bergmann et al., CVPR 2019).
    shares (..., K): what each step adds to the sum over regions. The curve joins the points of all
    distinct thresholds, and (0, 0), by straight lines: where normal and anomalous pixels tie both
    rates grow together. At the limit it is cut at its height there.
    """
    overlap = np.cumsum(shares, -1)
    overlap = overlap / overlap[..., -1:]
    before = np.concatenate([np.zeros_like(overlap[..., :1]), overlap[..., :-1]], -1)
    end = np.asarray(limit * steps.normal)[..., None]
    above, alarms = np.minimum(steps.above, end), np.minimum(steps.alarms, end)
    # False alarms alone, at the height of the step before; then those that tie with hits.
    flat = above - np.concatenate([np.zeros_like(alarms[..., :1]), alarms[..., :-1]], -1)
    tied = steps.alarms - steps.above
    rise = (alarms - above) / np.where(tied > 0, tied, 1) * (overlap - before)
    area = before * flat + (alarms - above) * (before + rise / 2)
    rest = end[..., 0] - alarms[..., -1]  # where all is found
    return (area.sum(-1) + rest) / end[..., 0]
