"""From three distances to map and scores, in C++. Loads no PyTorch."""

from functools import lru_cache

from scrd_fast import _native
from scrd_fast.reference.normal_map import NormalMap, foreground_limits
from scrd_fast.spec import STRIDES, ScoringSpec


@lru_cache(maxsize=64)
def native_tail(spec: ScoringSpec) -> _native.Tail:
    """The C++ object that turns three distances into map and scores by `spec`."""
    side = spec.input_size
    sides = [side // stride for stride in STRIDES]
    prior = None
    if spec.prior is not None:
        normal = NormalMap.of(spec.prior)
        foreground = None if spec.prior.foreground is None else foreground_limits(spec)
        prior = _native.Prior(side, sides, normal.projection.ravel(), normal.shift,
                              normal.maps().ravel(), normal.level.tolist(), spec.prior.offset,
                              foreground)
    return _native.Tail(side, sides, float(spec.blur_sigma), spec.weighting == "scale", prior)
