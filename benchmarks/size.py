"""How large the benchmarks are: the published model, or with SCRD_FAST_QUICK_BENCHMARKS=1 a small
one and few turns, to see that everything runs and every peer agrees. Quick figures are not judged.
"""

import os

QUICK = os.environ.get("SCRD_FAST_QUICK_BENCHMARKS") == "1"
BACKBONE, SIDE = ("resnet18", 64) if QUICK else ("wide_resnet50_2", 256)


def turns(wanted: int) -> int:
    """How often a benchmark is to repeat what it times."""
    return 2 if QUICK else wanted
