"""What the kernels of the contrastive loss are launched with; no shape is compiled into them."""

from collections.abc import Iterator
from typing import Any

from scrd_fast.kernels.contrastive_loss import CHUNK
from scrd_fast.reference.anomaly_map import COSINE_EPS

DTYPES = {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32", "fp64": "fp64"}  # and that of the sums


def cases() -> Iterator[tuple[str, dict[str, Any]]]:
    sizes = {f"size{k}": "i32:16" for k in (1, 2, 3)}  # elements of an image's map
    for dtype, sums in DTYPES.items():
        maps = {f"{name}{k}": f"*{dtype}" for name in ("clean", "noisy", "student")
                for k in (1, 2, 3)}
        yield "partial_sums_kernel", maps | sizes | {"partials": f"*{sums}", "CHUNK": CHUNK}
        gradients = {f"gradient{k}": f"*{dtype}" for k in (1, 2, 3)}
        yield "student_gradient_kernel", maps | gradients | sizes | {
            "grad_terms": f"*{sums}", "factors": f"*{sums}", "images": "i32"}
    for sums in ("fp32", "fp64"):
        yield "loss_terms_kernel", sizes | {
            "partials": f"*{sums}", "terms": f"*{sums}", "factors": f"*{sums}", "CHUNK": CHUNK,
            "EPS": COSINE_EPS, "BLOCK": 128}
