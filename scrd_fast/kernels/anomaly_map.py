"""GPU kernels of ops.anomaly_map: cosine distances, then map, mean and maximum from them.

With M_k the distances of scale k (h_k x h_k), w_k its weight and U_k the matrix that upsamples and
blurs (see ops.anomaly_map),

    map = sum_k w_k U_k M_k U_k^T,    mean(map) = sum_k w_k u_k^T M_k u_k.

U_k is banded: the rows of one block of the map see few of its columns. So a tile of the map needs
a window of M_k only, and the 256 x (64 + 32 + 16) matrix U shrinks to windows of 32 + 16 + 16
columns at sigma 4.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast.kernels.tuning import autotune
from scrd_fast.reference.anomaly_map import COSINE_EPS, upsample_blur_matrix
from scrd_fast.spec import ScoringSpec

BLOCK = 64  # rows of U that share a window: blocks of 32 would have windows as wide
MEAN_CHUNK = 1024

_EPS = tl.constexpr(COSINE_EPS)
_LARGEST_FLOAT = tl.constexpr(float(np.finfo(np.float32).max))

# FAST runs along what lies side by side in memory, SLOW across it. A thread gets 16 elements of
# each tensor, in half precision two loads of 16 bytes, and 80 registers; with fewer elements ptxas
# spills on sm_100. What is tuned is how much a program reads: for 64 images an H100 takes 128 x 8
# (167 us, 94 % of the rate of a copy), for one 256 x 16 (5.7 us).
DISTANCE_CONFIGS = [
    triton.Config({"FAST": 128, "SLOW": 16}, num_warps=4),
    triton.Config({"FAST": 256, "SLOW": 8}, num_warps=4),
    triton.Config({"FAST": 128, "SLOW": 8}, num_warps=2),
    triton.Config({"FAST": 256, "SLOW": 16}, num_warps=8),
]
# A tile of the map: as many columns as share a window, and as many rows as fit into the registers.
# Tiles of 64 rows would multiply less, but of them Triton makes warp-group products on Hopper
# (wgmma), and several of those in one kernel race: on an H100 Triton 3.6 gave wrong tiles and
# illegal addresses (triton-lang/triton, issues 10486 and 11366).
COLUMNS = BLOCK
_ONE_STEP = 32  # windows that are multiplied at once


def rows_of_a_tile(windows: Sequence[int]) -> int:
    """32, or 16 where a wide blur needs its windows in steps, beside which 32 rows spill."""
    return 32 if max(windows) <= _ONE_STEP else 16


@triton.jit
def _scale_distances(teacher, student, distance, image, tile, channels, pixels,
                     LAST: tl.constexpr, FAST: tl.constexpr, SLOW: tl.constexpr):
    """Distances of one tile of pixels of one scale."""
    BLOCK_P: tl.constexpr = SLOW if LAST else FAST
    BLOCK_C: tl.constexpr = FAST if LAST else SLOW
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    origin = image.to(tl.int64) * channels * pixels
    dot = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    of_teacher, of_student = dot, dot
    first = 0
    while first < channels:  # Triton 3.6 interprets no range of run-time values under NumPy 2.4
        channel = first + tl.arange(0, BLOCK_C)
        if LAST:
            offset = pixel[:, None] * channels + channel[None, :]
        else:
            offset = pixel[:, None] + channel[None, :] * pixels
        inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
        t = tl.load(teacher + origin + offset, inside, 0.0).to(tl.float32)
        s = tl.load(student + origin + offset, inside, 0.0).to(tl.float32)
        dot += t * s
        of_teacher += t * t
        of_student += s * s
        first += BLOCK_C
    square_t, square_s = tl.sum(of_teacher, 1), tl.sum(of_student, 1)
    cosine = tl.div_rn(tl.sum(dot, 1), tl.maximum(tl.sqrt_rn(square_t), _EPS))
    cosine = tl.div_rn(cosine, tl.maximum(tl.sqrt_rn(square_s), _EPS))
    # A square that overflows would give the distance 1, as if all were well.
    finite = (square_t <= _LARGEST_FLOAT) & (square_s <= _LARGEST_FLOAT)
    tl.store(distance + image.to(tl.int64) * pixels + pixel,
             tl.where(finite, 1 - cosine, float("nan")), pixel < pixels)


@triton.jit
def _program_distances(t1, t2, t3, s1, s2, s3, d1, d2, d3, c1, c2, c3, p1, p2, p3,
                       LAST: tl.constexpr, FAST: tl.constexpr, SLOW: tl.constexpr):
    """What one program of the two kernels below does: one tile of pixels of one image."""
    TILE: tl.constexpr = SLOW if LAST else FAST
    n1, n2, n3 = tl.cdiv(p1, TILE), tl.cdiv(p2, TILE), tl.cdiv(p3, TILE)
    tiles = n1 + n2 + n3
    image = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if tile < n1:
        _scale_distances(t1, s1, d1, image, tile, c1, p1, LAST, FAST, SLOW)
    elif tile < n1 + n2:
        _scale_distances(t2, s2, d2, image, tile - n1, c2, p2, LAST, FAST, SLOW)
    else:
        _scale_distances(t3, s3, d3, image, tile - n1 - n2, c3, p3, LAST, FAST, SLOW)


@autotune(DISTANCE_CONFIGS, key=["images", "c1", "p1", "LAST"])
@triton.jit
def distances_kernel(t1, t2, t3, s1, s2, s3, d1, d2, d3, images, c1, c2, c3, p1, p2, p3,
                     LAST: tl.constexpr, FAST: tl.constexpr, SLOW: tl.constexpr):
    """Programs (images * tiles of all scales,): one reads its pixels of both networks once.

    c1, c2, c3: channels; p1, p2, p3: pixels; LAST: whether the channels lie side by side.
    """
    _program_distances(t1, t2, t3, s1, s2, s3, d1, d2, d3, c1, c2, c3, p1, p2, p3,
                       LAST, FAST, SLOW)


# TensorRT passes a plugin's kernel its tensors; scalars besides have not worked everywhere, and
# here need not: a plan is compiled for one network.
@triton.jit
def plugin_distances_kernel(t1, t2, t3, s1, s2, s3, d1, d2, d3,
                            C1: tl.constexpr, C2: tl.constexpr, C3: tl.constexpr,
                            P1: tl.constexpr, P2: tl.constexpr, P3: tl.constexpr,
                            LAST: tl.constexpr, FAST: tl.constexpr, SLOW: tl.constexpr):
    """`distances_kernel` for one network: channels and pixels are compiled in."""
    _program_distances(t1, t2, t3, s1, s2, s3, d1, d2, d3, C1, C2, C3, P1, P2, P3,
                       LAST, FAST, SLOW)


@triton.jit
def _weight(weights, image, scale: tl.constexpr, WEIGHTED: tl.constexpr):
    return tl.load(weights + image * 3 + scale) if WEIGHTED else 1.0


@triton.jit
def _scale_mean(distance, columns, image, side, CHUNK: tl.constexpr):
    """u^T M u of one scale; columns: u, the column means of U."""
    pixels = side * side
    total = tl.zeros([CHUNK], tl.float32)
    first = 0
    while first < pixels:
        pixel = first + tl.arange(0, CHUNK)
        inside = pixel < pixels
        row = tl.load(columns + pixel // side, inside, 0.0)
        column = tl.load(columns + pixel % side, inside, 0.0)
        m = tl.load(distance + image.to(tl.int64) * pixels + pixel, inside, 0.0)
        total += row * m * column
        first += CHUNK
    return tl.sum(total, 0)


@triton.jit
def _windows(distance, bands, starts, image, row_tile, column_tile, side, scale: tl.constexpr,
             STEP: tl.constexpr, SKIP: tl.constexpr, WINDOWS: tl.constexpr, BLOCK: tl.constexpr,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where one tile of the map finds what a scale multiplies: pointers to rows and columns of U
    (ROWS, STEP) and (STEP, COLUMNS), to M, and the pixels of M at which the windows begin.

    bands (blocks * BLOCK, WINDOWS): the rows of U, of each scale the window of its columns that
    the block sees, which begins at starts (blocks, 3); SKIP: where this scale begins in a row.
    """
    step = tl.arange(0, STEP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    rows = bands + row[:, None] * WINDOWS + SKIP + step[None, :]
    columns = bands + column[None, :] * WINDOWS + SKIP + step[:, None]
    top = tl.load(starts + row_tile * ROWS // BLOCK * 3 + scale) + step
    left = tl.load(starts + column_tile * COLUMNS // BLOCK * 3 + scale) + step
    return rows, columns, distance + image.to(tl.int64) * side * side, top, left


@triton.jit
def _part(m, top, left, side, down, right):
    """A step of the window of M."""
    y, x = top + down, left + right
    return tl.load(m + y[:, None] * side + x[None, :], (y[:, None] < side) & (x[None, :] < side),
                   0.0)


@triton.jit
def _scale_tile(rows, columns, m, top, left, row, part, column, side,
                WINDOW: tl.constexpr, STEP: tl.constexpr):
    """U_k M_k U_k^T of one scale on one tile of the map.

    row, part, column: what the first step multiplies, already loaded.
    """
    # Three TF32 products keep float32's accuracy; one would keep 11 bits.
    if WINDOW == STEP:
        total = tl.dot(tl.dot(row, part, input_precision="tf32x3"), column,
                       input_precision="tf32x3")
    else:
        total = tl.zeros([rows.shape[0], columns.shape[1]], tl.float32)
        for right in range(0, WINDOW, STEP):
            half = tl.zeros([rows.shape[0], STEP], tl.float32)
            for down in range(0, WINDOW, STEP):
                half += tl.dot(tl.load(rows + down), _part(m, top, left, side, down, right),
                               input_precision="tf32x3")
            total += tl.dot(half, tl.load(columns + right), input_precision="tf32x3")
    return total


@triton.jit
def combine_kernel(d1, d2, d3, weights, bands, starts, columns, map_out, mean_out, largest_out,
                   size, side1, side2, side3, W1: tl.constexpr, W2: tl.constexpr,
                   W3: tl.constexpr, WEIGHTED: tl.constexpr, MAPS: tl.constexpr,
                   LARGEST: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
                   ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Programs (images * (1 + tiles),): the first of an image computes its mean in closed form,
    each other one tile of its map, which it writes (MAPS) and takes the maximum of (LARGEST).

    Without map and maximum there is the first program only, so that the mean has the same bits.
    """
    across = tl.cdiv(size, COLUMNS)
    programs = 1
    if MAPS or LARGEST:
        programs += tl.cdiv(size, ROWS) * across
    image = tl.program_id(0) // programs
    program = tl.program_id(0) % programs
    w1 = _weight(weights, image, 0, WEIGHTED)
    w2 = _weight(weights, image, 1, WEIGHTED)
    w3 = _weight(weights, image, 2, WEIGHTED)
    if program == 0:
        mean = w1 * _scale_mean(d1, columns, image, side1, CHUNK)
        mean += w2 * _scale_mean(d2, columns + side1, image, side2, CHUNK)
        mean += w3 * _scale_mean(d3, columns + side1 + side2, image, side3, CHUNK)
        tl.store(mean_out + image, mean)
    elif MAPS or LARGEST:
        row_tile = (program - 1) // across
        column_tile = (program - 1) % across
        WINDOWS: tl.constexpr = W1 + W2 + W3
        S1: tl.constexpr = 32 if W1 % 32 == 0 else 16
        S2: tl.constexpr = 32 if W2 % 32 == 0 else 16
        S3: tl.constexpr = 32 if W3 % 32 == 0 else 16
        r1, c1, m1, t1, l1 = _windows(d1, bands, starts, image, row_tile, column_tile, side1, 0,
                                      S1, 0, WINDOWS, BLOCK, ROWS, COLUMNS)
        r2, c2, m2, t2, l2 = _windows(d2, bands, starts, image, row_tile, column_tile, side2, 1,
                                      S2, W1, WINDOWS, BLOCK, ROWS, COLUMNS)
        r3, c3, m3, t3, l3 = _windows(d3, bands, starts, image, row_tile, column_tile, side3, 2,
                                      S3, W1 + W2, WINDOWS, BLOCK, ROWS, COLUMNS)
        # All scales' loads under way before the first product, which waits for its own only.
        row1, part1, column1 = tl.load(r1), _part(m1, t1, l1, side1, 0, 0), tl.load(c1)
        row2, part2, column2 = tl.load(r2), _part(m2, t2, l2, side2, 0, 0), tl.load(c2)
        row3, part3, column3 = tl.load(r3), _part(m3, t3, l3, side3, 0, 0), tl.load(c3)
        total = w1 * _scale_tile(r1, c1, m1, t1, l1, row1, part1, column1, side1, W1, S1)
        total += w2 * _scale_tile(r2, c2, m2, t2, l2, row2, part2, column2, side2, W2, S2)
        total += w3 * _scale_tile(r3, c3, m3, t3, l3, row3, part3, column3, side3, W3, S3)
        y = row_tile * ROWS + tl.arange(0, ROWS)
        x = column_tile * COLUMNS + tl.arange(0, COLUMNS)
        inside = (y[:, None] < size) & (x[None, :] < size)
        if MAPS:
            tl.store(map_out + image.to(tl.int64) * size * size + y[:, None] * size + x[None, :],
                     total, inside)
        if LARGEST:
            # The order of maxima does not change their result, unlike that of sums.
            highest = tl.max(tl.where(inside, total, -float("inf")))
            tl.atomic_max(largest_out + image, highest)


@triton_op("scrd_fast::cosine_distances", mutates_args={})
def _cosine_distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    n = len(teacher[0])
    last = all(f.is_contiguous(memory_format=torch.channels_last) for f in (*teacher, *student))
    if not last and not all(f.is_contiguous() for f in (*teacher, *student)):
        last = True
        teacher = [f.contiguous(memory_format=torch.channels_last) for f in teacher]
        student = [f.contiguous(memory_format=torch.channels_last) for f in student]
    distances = [t.new_empty((n, *t.shape[2:]), dtype=torch.float32) for t in teacher]
    channels = [t.shape[1] for t in teacher]
    pixels = [t.shape[2] * t.shape[3] for t in teacher]

    def grid(meta: dict[str, int]) -> tuple[int]:
        tile = meta["SLOW"] if meta["LAST"] else meta["FAST"]
        return (n * sum(triton.cdiv(p, tile) for p in pixels),)

    with torch.cuda.device_of(teacher[0]):  # Triton launches on the current device
        wrap_triton(distances_kernel)[grid](*teacher, *student, *distances, n, *channels, *pixels,
                                            LAST=last)
    return distances


def cosine_distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """Three maps (N, C_k, h_k, w_k) of each network -> three float32 distances (N, h_k, w_k).

    float32, float16 or bfloat16, all channels-last or all contiguous (else they are copied);
    summed in float32, in one launch. NaN where a vector has no finite norm.
    """
    return list(_cosine_distances(list(teacher), list(student)))


class Tail(NamedTuple):
    """What `combine_distances` needs of a ScoringSpec, on a device; see `combine_kernel`."""

    spec: ScoringSpec
    sides: tuple[int, int, int]
    windows: tuple[int, int, int]
    bands: Tensor
    starts: Tensor
    columns: Tensor


def _window(matrix: NDArray[np.float64]) -> tuple[int, NDArray[np.int64]]:
    """Width of the windows of a matrix (size, side), and where each block's begins.

    The width is 16 or a multiple of 32: the kernel multiplies in such steps.
    """
    begins, widest = [], 1
    for first in range(0, len(matrix), BLOCK):
        used = np.flatnonzero(matrix[first : first + BLOCK].any(axis=0))
        begins.append(used[0])
        widest = max(widest, int(used[-1] - used[0]) + 1)
    return 16 if widest <= 16 else 32 * triton.cdiv(widest, 32), np.array(begins)


@lru_cache(maxsize=16)
def tail(spec: ScoringSpec, sides: tuple[int, int, int], device: torch.device) -> Tail:
    """The windows of U_k and its column means, for features of these sides."""
    size = spec.input_size
    matrices = [upsample_blur_matrix(size, side, float(spec.blur_sigma)) for side in sides]
    windows, starts = zip(*map(_window, matrices), strict=True)
    blocks = triton.cdiv(size, BLOCK)
    bands = np.zeros((blocks * BLOCK, sum(windows)))
    for k, matrix in enumerate(matrices):
        skip = sum(windows[:k])
        for row, values in enumerate(matrix):
            start = starts[k][row // BLOCK]
            seen = values[start : start + windows[k]]
            bands[row, skip : skip + len(seen)] = seen
    columns = np.concatenate([m.mean(axis=0) for m in matrices])
    with torch.inference_mode(False):  # kept between calls: see ops.anomaly_map
        return Tail(spec, sides, windows,
                    torch.tensor(bands, dtype=torch.float32, device=device),
                    torch.tensor(np.stack(starts, 1), dtype=torch.int32, device=device),
                    torch.tensor(columns, dtype=torch.float32, device=device))


@triton_op("scrd_fast::combine_distances", mutates_args={})
def _combine(distances: Sequence[Tensor], weights: Tensor | None, bands: Tensor, starts: Tensor,
             columns: Tensor, size: int, windows: Sequence[int], maps: bool,
             largest: bool) -> tuple[Tensor, Tensor, Tensor]:
    d0 = distances[0]
    n = len(d0)
    total = d0.new_empty((n, size, size) if maps else 0)
    mean = d0.new_empty(n)
    highest = d0.new_full((n if largest else 0,), -float("inf"))

    rows = rows_of_a_tile(windows)
    tiles = triton.cdiv(size, rows) * triton.cdiv(size, COLUMNS) if maps or largest else 0
    with torch.cuda.device_of(d0):
        wrap_triton(combine_kernel)[n * (1 + tiles),](
            *distances, d0 if weights is None else weights, bands, starts, columns, total, mean,
            highest, size, *(d.shape[1] for d in distances), *windows,
            WEIGHTED=weights is not None, MAPS=maps, LARGEST=largest, BLOCK=BLOCK,
            CHUNK=MEAN_CHUNK, ROWS=rows, COLUMNS=COLUMNS)
    return total, mean, highest


def combine_distances(
    distances: Sequence[Tensor], scale_weights: Tensor, tail: Tail, *, maps: bool = True
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Three contiguous float32 distances (N, h_k, h_k) and float32 weights (N, 3) -> map
    (N, S, S), mean (N,), maximum (N,), float32, in one launch.

    With maps=False there is no map, and a maximum only where the spec reduces by it.
    """
    spec = tail.spec
    largest = maps or spec.reduction == "max"
    weights = scale_weights.contiguous() if spec.weighting == "scale" else None
    total, mean, highest = _combine(list(distances), weights, tail.bands, tail.starts,
                                    tail.columns, spec.input_size, list(tail.windows), maps,
                                    largest)
    return total if maps else None, mean, highest if largest else None
