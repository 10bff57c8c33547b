"""GPU kernel of the scale head: pooling, three products, their sums and the softmax in one launch.

As ten operations it is ten launches of a captured graph, each for next to no work.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

CHANNELS, PIXELS = 32, 64  # of a tile; with 64 channels registers spill


@triton.jit
def scale_head_kernel(features, weight, bias, out, channels, pixels,
                      feature_n, feature_c, feature_p,
                      CHANNELS: tl.constexpr, PIXELS: tl.constexpr):
    """Programs (images,). feature_*: strides of image, channel and pixel; weight: (3, channels).

    A maximum passes over what is not a number; 0 times such a value does not.
    """
    image = tl.program_id(0)
    own = features + image.to(tl.int64) * feature_n  # one image has less than 2^31 elements
    sums_0 = tl.zeros([CHANNELS], tl.float32)
    sums_1 = tl.zeros([CHANNELS], tl.float32)
    sums_2 = tl.zeros([CHANNELS], tl.float32)
    poison = tl.zeros([CHANNELS], tl.float32)
    first_channel = 0
    while first_channel < channels:
        channel = first_channel + tl.arange(0, CHANNELS)
        known = channel < channels
        largest = tl.full([CHANNELS], float("-inf"), tl.float32)
        first_pixel = 0
        while first_pixel < pixels:
            pixel = first_pixel + tl.arange(0, PIXELS)
            inside = known[:, None] & (pixel < pixels)[None, :]
            at = channel[:, None] * feature_c + pixel[None, :] * feature_p
            values = tl.load(own + at, inside, 0.0).to(tl.float32)
            poison += tl.sum(values * 0.0, 1)
            largest = tl.maximum(largest, tl.max(tl.where(inside, values, float("-inf")), 1))
            first_pixel += PIXELS
        largest = tl.where(known, largest, 0.0)
        sums_0 += largest * tl.load(weight + channel, known, 0.0)
        sums_1 += largest * tl.load(weight + channels + channel, known, 0.0)
        sums_2 += largest * tl.load(weight + 2 * channels + channel, known, 0.0)
        first_channel += CHANNELS
    bad = tl.sum(poison, 0)
    logit_0 = tl.sum(sums_0, 0) + tl.load(bias) + bad
    logit_1 = tl.sum(sums_1, 0) + tl.load(bias + 1) + bad
    logit_2 = tl.sum(sums_2, 0) + tl.load(bias + 2) + bad
    top = tl.maximum(tl.maximum(logit_0, logit_1), logit_2)
    part_0, part_1, part_2 = tl.exp(logit_0 - top), tl.exp(logit_1 - top), tl.exp(logit_2 - top)
    total = part_0 + part_1 + part_2
    tl.store(out + image * 3, part_0 / total)
    tl.store(out + image * 3 + 1, part_1 / total)
    tl.store(out + image * 3 + 2, part_2 / total)


@triton_op("scrd_fast::scale_head", mutates_args={})
def scale_head(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """softmax(weight @ max over pixels + bias) of each image, float32 (N, 3).

    features: (N, C, h, w) of float32, float16 or bfloat16, contiguous or channels-last; weight:
    float32 (3, C), contiguous; bias: float32 (3,). NaN where a feature is not finite.
    """
    n, channels, height, width = features.shape
    if features.stride(2) != width * features.stride(3):
        features = features.contiguous()
    out = torch.empty((n, 3), dtype=torch.float32, device=features.device)
    if n:
        wrap_triton(scale_head_kernel)[(n,)](
            features, weight, bias, out, channels, height * width,
            features.stride(0), features.stride(1), features.stride(3),
            CHANNELS=CHANNELS, PIXELS=PIXELS)
    return out
