"""Says what a speed figure needs, and judges it where the machine has that."""

from typing import Any

import torch

from benchmarks.size import QUICK
from scrd_fast import _native


def judge(
    benchmark: Any, ratio: float, wanted: float | None, *, at_most: bool = False,
    gpu: bool = False, avx2: bool = False,
) -> None:
    """Print what is wanted, if anything; assert it where the core uses AVX-512 or, with `avx2`,
    AVX2 or, with `gpu`, on a CUDA GPU, which the wanted figures are for, and never of a quick run.
    """
    if wanted is None:
        benchmark.extra_info |= {"ratio": ratio}
        return
    sets = ("avx2", "avx512") if avx2 else ("avx512",)
    fits = torch.cuda.is_available() if gpu else _native.isa() in sets
    judged = fits and not QUICK
    limit = f"{'at most' if at_most else 'at least'} {wanted:g}"
    needs = "a CUDA GPU" if gpu else "AVX2" if avx2 else "AVX-512"
    benchmark.extra_info |= {"ratio": ratio, "wanted": limit, "needs": needs, "judged": judged}
    if not judged:
        print(f"{limit} is wanted with {needs}: not judged, "
              + ("in a quick run" if fits else "this machine lacks it"))
        return
    print(f"{limit} is wanted with {needs}")
    assert ratio <= wanted if at_most else ratio >= wanted
