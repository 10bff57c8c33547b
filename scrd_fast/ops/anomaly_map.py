"""The anomaly map of teacher and student features; the maths is in reference."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scrd_fast.errors import NotFiniteError, expect, fail
from scrd_fast.ops.implementations import (
    as_array,
    check_device,
    check_tensor,
    choose,
    is_dense,
    not_native,
    not_triton,
)
from scrd_fast.ops.native_tail import native_tail
from scrd_fast.reference.anomaly_map import AnomalyMap, combine_distances, cosine_distance
from scrd_fast.reference.prior import apply_prior
from scrd_fast.spec import STRIDES, THUMBNAIL, ScoringSpec

GPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_FEATURE_DTYPES = (*GPU_DTYPES, torch.float64)


def _check_finite(teacher: Tensor, student: Tensor, k: int) -> None:
    """Raise NotFiniteError at the first pixel where the cosine of scale k has no finite norms."""
    dtype = torch.promote_types(teacher.dtype, torch.float32)
    fine = [torch.isfinite(f.to(dtype).square().sum(dim=1)) for f in (teacher, student)]
    bad = ~(fine[0] & fine[1])
    if bool(bad.any()):
        i, y, x = bad.nonzero()[0].tolist()
        name, features = ("student", student) if bool(fine[0][i, y, x]) else ("teacher", teacher)
        got = ("values whose sum of squares overflows"
               if bool(torch.isfinite(features[i, :, y, x]).all()) else "one that is not")
        raise NotFiniteError(f"{name}[{k}]: expected finite values, got {got}, at row {y}, column"
                             f" {x} of image {i}")


def check_features(
    scale_weights: Tensor, first: str, features: Sequence[Tensor], **others: Sequence[Tensor]
) -> None:
    """Raise InputError unless all scales agree in count, shape, dtype, batch and device.

    first, features: name and feature maps that the `others`, given by name, are held against.
    """
    # The texts are made only where they are needed: all of them take 6 of a map's 150 us.
    if not is_dense(scale_weights):
        check_tensor(scale_weights, "scale_weights")
    for name, maps in ((first, features), *others.items()):
        if not isinstance(maps, Sequence) or len(maps) != 3:
            got = len(maps) if isinstance(maps, Sequence) else type(maps).__name__
            fail(name, "three feature maps", got)
        for k, f in enumerate(maps):
            if not is_dense(f):
                check_tensor(f, f"{name}[{k}]")
    n, dtype, device = features[0].shape[:1].numel(), features[0].dtype, features[0].device
    for k, f in enumerate(features):
        shape = f.shape  # each time it is asked for a tensor makes it anew
        if len(shape) != 4 or 0 in shape:
            fail(f"{first}[{k}]", "(N, C, h, w)", tuple(shape))
        if f.dtype not in _FEATURE_DTYPES:
            fail(f"{first}[{k}]", "float16, bfloat16, float32 or float64", f.dtype)
        if shape[0] != n:
            fail(f"{first}[{k}]", f"a batch of {n} as at the first scale", shape[0])
        if f.dtype != dtype:
            fail(f"{first}[{k}]", f"{dtype} as at the first scale", f.dtype)
        if f.device != device:
            check_device(f"{first}[{k}]", f, f"{first}[0]", device)
        for name, maps in others.items():
            m = maps[k]
            if m.shape != shape:
                fail(f"{name}[{k}]", tuple(shape), tuple(m.shape))
            if m.dtype != dtype:
                fail(f"{name}[{k}]", dtype, m.dtype)
            if m.device != device:
                check_device(f"{name}[{k}]", m, f"{first}[0]", device)
    if scale_weights.shape != (n, 3):
        fail("scale_weights", (n, 3), tuple(scale_weights.shape))
    check_device("scale_weights", scale_weights, f"{first}[0]", device)


def check_weights(scale_weights: Tensor, weighting: str) -> None:
    """Raise InputError unless the weights (N, 3) are a softmax's, where they count at all."""
    if weighting == "scale":
        w = scale_weights.detach().double()
        # A bfloat16 softmax sums to one within 3 roundings of 2^-9.
        fits = ((w.sum(dim=1) - 1).abs() <= 1e-2) & (w >= 0).all(dim=1)
        if not bool(fits.all()):
            i = int((~fits).nonzero()[0])
            expect(False, "scale_weights", "three weights from 0 that sum to 1",
                   f"{', '.join(f'{v:f}' for v in w[i].tolist())} for image {i}")


def _check_thumbnails(thumbnails: Tensor | None, count: int, spec: ScoringSpec,
                      device: torch.device) -> None:
    """Raise InputError unless there are such as a prior reads where the spec has one."""
    if spec.prior is None or thumbnails is None:
        expect(spec.prior is None and thumbnails is None, "thumbnails",
               "those of the images where the spec has a prior, and only there",
               f"{'none' if thumbnails is None else 'some'} and"
               f" {'no' if spec.prior is None else 'a'} prior")
        return
    check_tensor(thumbnails, "thumbnails")
    expect(thumbnails.shape == (count, THUMBNAIL, THUMBNAIL) and thumbnails.is_floating_point(),
           "thumbnails", f"floats ({count}, {THUMBNAIL}, {THUMBNAIL})",
           f"{thumbnails.dtype} {tuple(thumbnails.shape)}")
    check_device("thumbnails", thumbnails, "teacher[0]", device)


def _on_gpu(
    teacher: Sequence[Tensor], student: Sequence[Tensor], thumbnails: Tensor | None,
    scale_weights: Tensor, spec: ScoringSpec, maps: bool,
) -> AnomalyMap:
    """`anomaly_map` by the GPU kernels; where a feature is not finite, the mean is not."""
    from scrd_fast.kernels import anomaly_map as kernels
    from scrd_fast.kernels.prior import apply_prior as judge
    from scrd_fast.kernels.prior import device_prior

    check_weights(scale_weights, spec.weighting)
    sides = (teacher[0].shape[2], teacher[1].shape[2], teacher[2].shape[2])
    device = teacher[0].device
    distances = kernels.cosine_distances(teacher, student)
    if thumbnails is not None:
        distances = judge(distances, thumbnails.float(), device_prior(spec, device))
    return AnomalyMap(*kernels.combine_distances(
        distances, scale_weights.float(), kernels.tail(spec, sides, device), maps=maps))


def anomaly_map(
    teacher: Sequence[Tensor],
    student: Sequence[Tensor],
    scale_weights: Tensor,
    spec: ScoringSpec,
    *,
    thumbnails: Tensor | None = None,
    maps: bool = True,
    impl: str | None = None,
) -> AnomalyMap:
    """The anomaly map of a batch and its mean and maximum.

    teacher, student: three (N, C_k, S/4, S/4), (N, C_k, S/8, S/8), (N, C_k, S/16, S/16), any
    floating dtype; scale_weights: (N, 3); thumbnails: floats (N, 16, 16) of the network's input, as
    reference.prior makes them, where the spec has a prior. Distances and map are computed in
    float32 (float64 where the features are). With maps=False the mean comes from the closed form
    and `.map` and `.max` are None, unless the spec reduces by the maximum, which needs the map.
    impl: "native" (float32 and bfloat16 on the CPU), "triton" (these and float16 on a GPU), both
    without gradients, or "reference"; None takes the first that can run. Raises InputError naming
    the argument that does not fit or is not finite, and BackendUnavailable.
    """
    check_features(scale_weights, "teacher", teacher, student=student)
    for k, (t, stride) in enumerate(zip(teacher, STRIDES, strict=True)):
        side = spec.input_size // stride
        if t.shape[2:] != (side, side):
            fail(f"teacher[{k}]", f"(N, C, {side}, {side})", tuple(t.shape))
    _check_thumbnails(thumbnails, len(teacher[0]), spec, teacher[0].device)
    tensors = [*teacher, *student, scale_weights]
    chosen = choose("anomaly_map", impl,
                    native=lambda: not_native(tensors, (torch.float32, torch.bfloat16)),
                    triton=lambda: not_triton(tensors, GPU_DTYPES))
    if chosen == "native":
        total, mean, largest = native_tail(spec).anomaly_map(
            [as_array(t) for t in teacher], [as_array(s) for s in student],
            as_array(scale_weights.float().contiguous()), maps, spec.reduction == "max",
            None if thumbnails is None else as_array(thumbnails.float().contiguous()))
        return AnomalyMap(None if total is None else torch.from_numpy(total),
                          torch.from_numpy(mean),
                          None if largest is None else torch.from_numpy(largest))
    if chosen == "triton":
        result = _on_gpu(teacher, student, thumbnails, scale_weights, spec, maps)
        if bool(result.mean.isfinite().all()):
            return result
    distances = [cosine_distance(t, s) for t, s in zip(teacher, student, strict=True)]
    for k, (t, s) in enumerate(zip(teacher, student, strict=True)):
        _check_finite(t, s, k)
    check_weights(scale_weights, spec.weighting)
    if thumbnails is not None:
        distances = apply_prior(distances, thumbnails, spec)
    return combine_distances(distances, scale_weights, spec, maps=maps)
