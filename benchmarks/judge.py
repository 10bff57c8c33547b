"""Says what a speed figure needs, and judges it where the machine has that."""

from typing import Any

import torch

from benchmarks.size import QUICK
from scrd_fast import _native

# Times as fast as the published loop, on a CPU with AVX-512 (bf16: AVX-512 BF16).
LOOP_WANTED = {"fp32": 1.6, "bf16": 3.0, "int8": 5.5}
# Times as fast the best precision is than what a user would run instead.
PEERS_WANTED = {"eager bf16": None, "torch.compile bf16": 1.6, "onnxruntime fp32": 3.3,
                "anomalib": None, "anomalib OpenVINO": None}


def aim(
    wanted: float, *, at_most: bool = False, gpu: bool = False, avx2: bool = False,
) -> dict[str, Any]:
    """What is wanted, what it needs, and whether a figure of this run is judged: where the core
    uses AVX-512 or, with `avx2`, AVX2 or, with `gpu`, on a CUDA GPU, which the wanted figures are
    for, and never of a quick run."""
    sets = ("avx2", "avx512") if avx2 else ("avx512",)
    fits = torch.cuda.is_available() if gpu else _native.isa() in sets
    return {"wanted": f"{'at most' if at_most else 'at least'} {wanted:g}",
            "needs": "a CUDA GPU" if gpu else "AVX2" if avx2 else "AVX-512",
            "judged": fits and not QUICK}


def judge(
    benchmark: Any, ratio: float, wanted: float | None, *, at_most: bool = False,
    gpu: bool = False, avx2: bool = False,
) -> None:
    """Print what is wanted, if anything; assert it where it is judged."""
    benchmark.extra_info["ratio"] = ratio
    if wanted is None:
        return
    found = aim(wanted, at_most=at_most, gpu=gpu, avx2=avx2)
    benchmark.extra_info |= found
    told = f"{found['wanted']} is wanted with {found['needs']}"
    if not found["judged"]:
        print(f"{told}: not judged, "
              + ("in a quick run" if QUICK else "this machine lacks it"))
        return
    print(told)
    assert ratio <= wanted if at_most else ratio >= wanted
