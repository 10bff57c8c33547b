"""GPU kernel of ops.simplex_noise, and the device functions that ops.add_noise shares with it.

As in the reference each point gets a case number in each octave, and a table holds the eight
lattice points of the case. Where a point lies is decided in float64, with the original's roundings
in the original's order: the noise jumps by up to 2e-4 where a point passes from one piece of its
cell to another, and pixels lie on such borders by the thousand. The sums are float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor
from torch.library import triton_op, wrap_triton

from scrd_fast import _native
from scrd_fast.reference import simplex_noise as reference

BLOCK = 128  # points of a program: patches of 20 x 20 pixels still spread over many

_STRETCH = tl.constexpr(reference.STRETCH)
_SQUISH = tl.constexpr(reference.SQUISH)
_MIDDLE, _FAR = tl.constexpr(reference.MIDDLE), tl.constexpr(reference.FAR)
_ENDED = tl.constexpr(reference.ENDED)
_X, _Y, _Z = tl.constexpr(reference.X), tl.constexpr(reference.Y), tl.constexpr(reference.Z)


@triton.jit
def _stretched(positions, x, y, z, inside):
    """Pixel coordinates (BLOCK,) -> float64 coordinates in the stretched lattice, octave 0."""
    px = tl.load(positions + x, inside, 0.0)
    py = tl.load(positions + y, inside, 0.0)
    pz = tl.load(positions + z, inside, 0.0)
    shift = (px + py + pz) * _STRETCH
    # The original rounds the product before it adds it, but GPU compilers make one operation of
    # both. The bits of position 0, which are all zero, leave the product as it is, and no
    # compiler can know them.
    zero = tl.load(positions).to(tl.int64, bitcast=True)
    shift = (shift.to(tl.int64, bitcast=True) ^ zero).to(tl.float64, bitcast=True)
    return px + shift, py + shift, pz + shift


@triton.jit
def _tetrahedron_case(x, y, z, total, far):
    """Cases in the near tetrahedron, and in the far one, which is its mirror image."""
    x, y, z = tl.where(far, -x, x), tl.where(far, -y, y), tl.where(far, -z, z)
    rest = tl.where(far, total - 3, 1 - total)
    # Of the three axes the two with the largest coordinates.
    z_second, z_first = (x >= y) & (z > y), (x < y) & (z > x)
    first, first_axis = tl.where(z_first, z, x), tl.where(z_first, _Z, _X)
    second, second_axis = tl.where(z_second, z, y), tl.where(z_second, _Z, _Y)
    ended = (rest > first) | (rest > second)
    case = tl.where(ended, _ENDED + tl.where(second > first, second_axis, first_axis),
                    first_axis | second_axis)
    return tl.where(far, _FAR + (case ^ 7), case)


@triton.jit
def _octahedron_case(x, y, z):
    """Cases in the octahedron between them. Nothing jumps inside it: float32 may decide."""
    xy, xz, yz = x + y - 1, x + z - 1, y + z - 1
    a, b, c = tl.abs(xy), tl.abs(xz), tl.abs(yz)
    # A face is the pair of its axes (far side) or the single axis opposite.
    axes_xy = tl.where(xy > 0, _X | _Y, _Z)
    axes_xz = tl.where(xz > 0, _X | _Z, _Y)
    axes_yz = tl.where(yz > 0, _Y | _Z, _X)
    # Of the three pairs of opposite faces, that which the point is least clearly on one side of
    # is dropped.
    drop_xy, drop_xz = (a <= b) & (a < c), (a > b) & (b < c)
    one, one_far = tl.where(drop_xy, axes_yz, axes_xy), tl.where(drop_xy, yz, xy) > 0
    two, two_far = tl.where(drop_xz, axes_yz, axes_xz), tl.where(drop_xz, yz, xz) > 0
    mixed = tl.where(one_far, (two << 3) + one, (one << 3) + two)
    same = tl.where(one_far, one & two, _ENDED + (one | two))
    return _MIDDLE + tl.where(one_far == two_far, same, mixed)


@triton.jit
def _component(gradient):
    """A component of a gradient by the two lowest bits: 4, 11, -4, -11."""
    return ((4 + 7 * (gradient & 1)) * (1 - (gradient & 2))).to(tl.float32)


@triton.jit
def _noise(table, cases, vx, vy, vz):
    """103 times the noise (BLOCK,) float32 at coordinates (BLOCK,) in the stretched lattice."""
    base_x, base_y, base_z = tl.floor(vx), tl.floor(vy), tl.floor(vz)
    x, y, z = vx - base_x, vy - base_y, vz - base_z
    total = x + y + z
    near, far = total <= 1, total >= 2
    fx, fy, fz = x.to(tl.float32), y.to(tl.float32), z.to(tl.float32)
    case = tl.where(near | far, _tetrahedron_case(x, y, z, total, far),
                    _octahedron_case(fx, fy, fz))
    corners = tl.load(cases + case)
    ix, iy, iz = base_x.to(tl.int32), base_y.to(tl.int32), base_z.to(tl.int32)
    # From the stretched lattice back to space: the way from the base to the point.
    squish = (fx + fy + fz) * _SQUISH
    ox, oy, oz = fx + squish, fy + squish, fz + squish
    noise = tl.zeros(fx.shape, tl.float32)
    for corner in tl.static_range(8):
        packed = (corners >> (8 * corner)).to(tl.int32)
        sx, sy, sz = (packed & 3) - 1, ((packed >> 2) & 3) - 1, ((packed >> 4) & 3) - 1
        away = (sx + sy + sz).to(tl.float32) * _SQUISH
        dx, dy, dz = ox - (sx + away), oy - (sy + away), oz - (sz + away)
        entry = tl.load(table + ((ix + sx) & 255)).to(tl.int32)
        entry = tl.load(table + ((entry + iy + sy) & 255)).to(tl.int32)
        gradient = tl.load(table + 256 + ((entry + iz + sz) & 255)).to(tl.int32)
        dot = (_component(gradient) * dx + _component(gradient >> 2) * dy
               + _component(gradient >> 4) * dz)
        reach = tl.maximum(2 - dx * dx - dy * dy - dz * dz, 0.0)
        reach *= reach
        noise += reach * reach * dot
    return noise


@triton.jit
def _octave_noise(table, cases, positions, weights, octaves, x, y, z, inside):
    """Octave noise (BLOCK,) float32 at pixels x, y, z (BLOCK,) where `inside`; see
    `noise_tables` for the other arguments."""
    vx, vy, vz = _stretched(positions, x, y, z, inside)
    noise = tl.zeros(vx.shape, tl.float32)
    octave = 0
    while octave < octaves:  # a range would do, but Triton 3.6 interprets none under NumPy 2.4
        noise += tl.load(weights + octave) * _noise(table, cases, vx, vy, vz)
        # Doubling is exact: these are the coordinates that the next octave's frequency gives.
        vx, vy, vz = vx + vx, vy + vy, vz + vz
        octave += 1
    return noise


# Fields of any size take the same compiled kernel.
@triton.jit(do_not_specialize=["octaves", "points", "blocks", "height", "width"])
def simplex_noise_kernel(out, tables, cases, positions, weights, octaves, points, blocks, height,
                         width, BLOCK: tl.constexpr):
    """out[s, z, y, x] for BLOCK points of one seed; programs: seeds * blocks."""
    program = tl.program_id(0)
    seed = (program // blocks).to(tl.int64)
    at = (program % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < points
    x, row = at % width, at // width
    y, z = row % height, row // height
    noise = _octave_noise(tables + seed * 512, cases, positions, weights, octaves, x, y, z, inside)
    tl.store(out + seed * points + at, noise, inside)


def _packed_cases() -> NDArray[np.int64]:
    """(384,): the eight lattice points of each case, a byte each with two bits per axis, plus 1."""
    # A point that only fills up a case stays out of reach when it moves from (9, 9, 9) to
    # (2, 2, 2).
    steps = np.minimum(reference.CASES, 2) + 1
    points = (steps << np.array([0, 2, 4])).sum(axis=2).astype(np.uint8)
    return np.ascontiguousarray(points).view("<i8")[:, 0]


def _packed_gradients() -> NDArray[np.uint8]:
    """(24,): two bits per axis, 1 where the component is 11 rather than 4, 2 where negative."""
    bits = (np.abs(reference.GRADIENTS) == 11) + 2 * (reference.GRADIENTS < 0)
    return (bits << np.array([0, 2, 4])).sum(axis=1).astype(np.uint8)


_CASES, _GRADIENTS = _packed_cases(), _packed_gradients()


def noise_tables(
    seeds: NDArray[np.int64], largest: int, octaves: int, persistence: float, wavelength: float
) -> list[NDArray[np.generic]]:
    """What the kernels read, for a grid of up to `largest` pixels along any axis.

    tables: uint8 (S, 512), the permutation of each seed, then the packed gradient of each entry;
    cases: int64 (384,); positions: float64 (largest,), of the pixels in octave 0; weights: float32
    (octaves,), with the noise's division by 103.
    """
    permutations = np.stack([_native.permutation(int(seed)) for seed in seeds])
    weights = [persistence**octave / reference.NORM for octave in range(octaves)]
    return [np.concatenate([permutations, _GRADIENTS[permutations % 24]], axis=1), _CASES,
            np.arange(largest) * (1 / wavelength), np.array(weights, dtype=np.float32)]


def upload(arrays: Sequence[NDArray[np.generic]], device: torch.device) -> list[Tensor]:
    """The arrays as tensors on `device`, in one copy that the host need not wait for."""
    ends = np.cumsum([-(-array.nbytes // 16) * 16 for array in arrays]).tolist()
    memory = np.zeros(ends[-1], dtype=np.uint8)
    parts = []
    for array, start in zip(arrays, [0, *ends], strict=False):
        part = slice(start, start + array.nbytes)
        memory[part] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        parts.append(part)
    tensor = torch.from_numpy(memory).to(device, non_blocking=True)
    return [tensor[part].view(torch.from_numpy(array[:0]).dtype).view(array.shape)
            for array, part in zip(arrays, parts, strict=True)]


@triton_op("scrd_fast::simplex_noise", mutates_args=())
def _simplex_noise(
    tables: Tensor, cases: Tensor, positions: Tensor, weights: Tensor, depth: int, height: int,
    width: int,
) -> Tensor:
    """Noise float32 (S, depth, height, width); see `noise_tables` for the tensors."""
    out = torch.empty((len(tables), depth, height, width), dtype=torch.float32,
                      device=tables.device)
    points = depth * height * width
    blocks = triton.cdiv(points, BLOCK)
    wrap_triton(simplex_noise_kernel)[(len(tables) * blocks,)](
        out, tables, cases, positions, weights, len(weights), points, blocks, height, width,
        BLOCK=BLOCK)
    return out


def simplex_noise(
    seeds: NDArray[np.int64], depth: int, height: int, width: int, octaves: int,
    persistence: float, wavelength: float, device: torch.device,
) -> Tensor:
    """Octave noise on a pixel grid, one field per seed, in one launch.

    seeds: (S,). Returns float32 (S, depth, height, width) on `device`; value [s, z, y, x] is
    sum_o persistence^o * noise3(x f_o, y f_o, z f_o) of seed s with f_o = 2^o / wavelength
    (K. Spencer, OpenSimplex, 2014; see ops.simplex_noise).
    """
    tables = upload(
        noise_tables(seeds, max(depth, height, width), octaves, persistence, wavelength), device)
    with torch.cuda.device_of(tables[0]):  # Triton launches on the current device
        noise: Tensor = _simplex_noise(*tables, depth, height, width)
    return noise
