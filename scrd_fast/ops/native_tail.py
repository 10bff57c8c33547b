"""From three distances to map and scores, in C++. Loads no PyTorch."""

from functools import lru_cache

from scrd_fast import _native
from scrd_fast.spec import STRIDES, ScoringSpec


@lru_cache(maxsize=64)
def native_tail(spec: ScoringSpec) -> _native.Tail:
    """The C++ object that turns three distances into map and scores by `spec`."""
    side = spec.input_size
    return _native.Tail(side, [side // stride for stride in STRIDES], float(spec.blur_sigma),
                        spec.weighting == "scale")
