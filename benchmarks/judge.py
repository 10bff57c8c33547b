"""Says what a speed figure needs, and judges it where the machine has that."""

from typing import Any

from scrd_fast import _native


def judge(benchmark: Any, ratio: float, wanted: float, *, at_most: bool = False) -> None:
    """Print what is wanted; assert it on a CPU with AVX-512, which all wanted figures are for."""
    limit = f"{'at most' if at_most else 'at least'} {wanted:g}"
    benchmark.extra_info |= {"ratio": ratio, "wanted": limit, "needs": "avx512"}
    if "avx512" not in _native.isas():
        print(f"{limit} is wanted with AVX-512, which this CPU lacks: not judged")
        return
    print(f"{limit} is wanted with AVX-512")
    assert ratio <= wanted if at_most else ratio >= wanted
