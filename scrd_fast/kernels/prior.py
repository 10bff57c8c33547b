"""GPU kernels of a prior: thumbnails, gains and shifts on their grid, and distances by these.

The maths is in reference.prior.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast.reference.normal_map import FARTHEST, NormalMap, foreground_limits, thumbnail_rows
from scrd_fast.spec import STRIDES, THUMBNAIL, ScoringSpec

_GRID = tl.constexpr(THUMBNAIL)
_CELLS = tl.constexpr(THUMBNAIL**2)
_SCALES = tl.constexpr(len(STRIDES))
_FARTHEST = tl.constexpr(FARTHEST)
COMPONENTS = 16  # that are read at once: 32 values of each of two maps per thread
PIXELS = 256  # of a distance, in a program


@triton.jit
def thumbnail_kernel(inputs, out, first, step, cell, of_image, of_channel, of_row, of_column):
    """Programs (images * 16,): a row of cells. of_*: strides of the inputs in elements."""
    image = tl.program_id(0) // _GRID
    row = tl.program_id(0) % _GRID
    at = inputs + image.to(tl.int64) * of_image + (first + 2 * row * step).to(tl.int64) * of_row
    column = tl.arange(0, _GRID) * cell
    total = tl.zeros([_GRID], tl.float32)
    x = 0
    while x < cell:  # as in kernels.anomaly_map: the interpreter takes no range of run-time values
        for channel in tl.static_range(3):
            for line in tl.static_range(2):
                total += tl.load(at + channel * of_channel + line * step * of_row
                                 + (column + x) * of_column).to(tl.float32)
        x += 1
    tl.store(out + tl.program_id(0) * _GRID + tl.arange(0, _GRID), total / (6 * cell))


@triton.jit
def grids_kernel(thumbnails, projection, shift, maps, level, out, components, offset, dark, bright,
                 MAPPED: tl.constexpr, MASKED: tl.constexpr, COMPONENTS: tl.constexpr):
    """Programs (images * 3,): gain and shift of a scale: out (images, 6, 256), gains first."""
    image = tl.program_id(0) // _SCALES
    scale = tl.program_id(0) % _SCALES
    cell = tl.arange(0, _CELLS)
    thumbnail = thumbnails + image.to(tl.int64) * _CELLS
    seen = tl.full([_CELLS], 1.0, tl.float32)
    if MASKED:
        y, x = cell // _GRID, cell % _GRID
        brightest = tl.full([_CELLS], -float("inf"), tl.float32)
        for down in tl.static_range(-1, 2):
            for right in tl.static_range(-1, 2):
                v, u = y + down, x + right
                on_grid = (v >= 0) & (v < _GRID) & (u >= 0) & (u < _GRID)
                near = tl.load(thumbnail + v * _GRID + u, on_grid, -float("inf"))
                brightest = tl.maximum(brightest, near)
        seen = tl.minimum(tl.maximum((brightest - dark) / (bright - dark), 0.0), 1.0)
    gain = seen
    moved = tl.zeros([_CELLS], tl.float32)
    if MAPPED:
        here = tl.load(thumbnail + cell)
        row = 2 * _SCALES * _CELLS  # of the maps of one term
        mean = maps + scale * _CELLS + cell
        spread = mean + _SCALES * _CELLS
        expected, log_spread = tl.load(mean), tl.load(spread)
        first = 0
        while first < components:
            component = first + tl.arange(0, COMPONENTS)
            known = component < components
            weight = tl.load(projection + component[:, None] * _CELLS + cell[None, :],
                             known[:, None], 0.0)
            z = tl.sum(weight * here[None, :], 1) + tl.load(shift + component, known, 0.0)
            z = tl.minimum(tl.maximum(z, -_FARTHEST), _FARTHEST)[:, None]
            linear = (1 + component[:, None]) * row
            square = linear + components * row
            inside = known[:, None] & (cell[None, :] < _CELLS)
            expected += tl.sum(z * tl.load(mean[None, :] + linear, inside, 0.0), 0)
            expected += tl.sum((z * z - 1) * tl.load(mean[None, :] + square, inside, 0.0), 0)
            log_spread += tl.sum(z * tl.load(spread[None, :] + linear, inside, 0.0), 0)
            log_spread += tl.sum((z * z - 1) * tl.load(spread[None, :] + square, inside, 0.0), 0)
            first += COMPONENTS
        gain = seen * (1 + offset) / (tl.exp(log_spread) + offset)
        moved = seen * tl.load(level + scale) - gain * expected
    at = out + (image.to(tl.int64) * 2 * _SCALES + scale) * _CELLS + cell
    tl.store(at, gain)
    tl.store(at + _SCALES * _CELLS, moved)


@triton.jit
def _between(low, high, fraction):
    return low + fraction * (high - low)


@triton.jit
def _judge_tile(distance, out, grids, image, tile, side, scale: tl.constexpr, BLOCK: tl.constexpr):
    """One tile of pixels of one scale."""
    pixel = tile * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < side * side
    ratio = _GRID / side.to(tl.float32)
    last = _GRID - 1.0
    y = tl.minimum(tl.maximum(((pixel // side).to(tl.float32) + 0.5) * ratio - 0.5, 0.0), last)
    x = tl.minimum(tl.maximum(((pixel % side).to(tl.float32) + 0.5) * ratio - 0.5, 0.0), last)
    top, left = y.to(tl.int32), x.to(tl.int32)
    below, right = tl.minimum(top + 1, _GRID - 1), tl.minimum(left + 1, _GRID - 1)
    down, across = y - top, x - left
    at = grids + (image.to(tl.int64) * 2 * _SCALES + scale) * _CELLS
    gain = _between(
        _between(tl.load(at + top * _GRID + left, inside, 0.0),
                 tl.load(at + top * _GRID + right, inside, 0.0), across),
        _between(tl.load(at + below * _GRID + left, inside, 0.0),
                 tl.load(at + below * _GRID + right, inside, 0.0), across), down)
    at += _SCALES * _CELLS
    moved = _between(
        _between(tl.load(at + top * _GRID + left, inside, 0.0),
                 tl.load(at + top * _GRID + right, inside, 0.0), across),
        _between(tl.load(at + below * _GRID + left, inside, 0.0),
                 tl.load(at + below * _GRID + right, inside, 0.0), across), down)
    place = image.to(tl.int64) * side * side + pixel
    tl.store(out + place, gain * tl.load(distance + place, inside, 0.0) + moved, inside)


@triton.jit
def judge_kernel(d1, d2, d3, o1, o2, o3, grids, side1, side2, side3, BLOCK: tl.constexpr):
    """Programs (images * tiles of all scales,): distances d -> judged ones o."""
    n1, n2 = tl.cdiv(side1 * side1, BLOCK), tl.cdiv(side2 * side2, BLOCK)
    tiles = n1 + n2 + tl.cdiv(side3 * side3, BLOCK)
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if tile < n1:
        _judge_tile(d1, o1, grids, image, tile, side1, 0, BLOCK)
    elif tile < n1 + n2:
        _judge_tile(d2, o2, grids, image, tile - n1, side2, 1, BLOCK)
    else:
        _judge_tile(d3, o3, grids, image, tile - n1 - n2, side3, 2, BLOCK)


class DevicePrior(NamedTuple):
    """The numbers of a spec's prior on a device; see `grids_kernel`."""

    projection: Tensor
    shift: Tensor
    maps: Tensor
    level: Tensor
    components: int
    offset: float
    foreground: tuple[float, float] | None


@lru_cache(maxsize=16)
def device_prior(spec: ScoringSpec, device: torch.device) -> DevicePrior:
    """The prior of a spec that has one."""
    prior = spec.prior
    assert prior is not None
    normal = NormalMap.of(prior)
    arrays = (normal.projection, normal.shift, normal.maps(), normal.level)
    with torch.inference_mode(False):  # kept between calls
        projection, shift, maps, level = (torch.tensor(a, device=device) for a in arrays)
    return DevicePrior(projection, shift, maps, level, prior.components, prior.offset,
                       None if prior.foreground is None else foreground_limits(spec))


@triton_op("scrd_fast::thumbnails", mutates_args={})
def _thumbnails(inputs: Tensor) -> Tensor:
    out = inputs.new_empty((len(inputs), THUMBNAIL, THUMBNAIL), dtype=torch.float32)
    with torch.cuda.device_of(inputs):
        wrap_triton(thumbnail_kernel)[len(inputs) * THUMBNAIL,](
            inputs, out, *thumbnail_rows(inputs.shape[-1]), *inputs.stride())
    return out


def thumbnails(inputs: Tensor) -> Tensor:
    """Normalised (N, 3, S, S) of float32, float16 or bfloat16, of any strides -> float32
    (N, 16, 16)."""
    return _thumbnails(inputs)


@triton_op("scrd_fast::apply_prior", mutates_args={})
def _apply_prior(distances: Sequence[Tensor], thumbs: Tensor, projection: Tensor, shift: Tensor,
                 maps: Tensor, level: Tensor, components: int, offset: float, masked: bool,
                 dark: float, bright: float) -> list[Tensor]:
    n, cells = len(thumbs), THUMBNAIL**2
    grids = thumbs.new_empty((n, 2 * len(STRIDES), cells))
    judged = [torch.empty_like(d) for d in distances]
    sides = [d.shape[1] for d in distances]
    with torch.cuda.device_of(thumbs):
        wrap_triton(grids_kernel)[n * len(STRIDES),](
            thumbs, projection, shift, maps, level, grids, components, offset, dark, bright,
            MAPPED=maps.numel() > 0, MASKED=masked, COMPONENTS=COMPONENTS)
        wrap_triton(judge_kernel)[n * sum(triton.cdiv(s * s, PIXELS) for s in sides),](
            *distances, *judged, grids, *sides, BLOCK=PIXELS)
    return judged


def apply_prior(distances: Sequence[Tensor], thumbs: Tensor, prior: DevicePrior) -> list[Tensor]:
    """Three contiguous float32 distances (N, h_k, h_k) and thumbnails (N, 16, 16) -> the distances
    as the prior judges them, in two launches."""
    dark, bright = prior.foreground or (0.0, 1.0)
    return list(_apply_prior(list(distances), thumbs.contiguous(), prior.projection, prior.shift,
                             prior.maps, prior.level, prior.components, prior.offset,
                             prior.foreground is not None, dark, bright))
