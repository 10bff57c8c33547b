"""What the kernels of a prior are compiled for; see compile_kernels."""

from collections.abc import Iterator

from scrd_fast.kernels.prior import COMPONENTS, PIXELS
from tests.kernels.compile_kernels import Arguments


def cases() -> Iterator[tuple[str, Arguments]]:
    """Kernel and arguments: inputs of each dtype and both layouts; each kind of prior."""
    for dtype in ("*fp32", "*fp16", "*bf16"):
        yield "thumbnail_kernel", {
            "inputs": dtype, "out": "*fp32", "first": "i32", "step": "i32", "cell": "i32:16",
            "of_image": "i32:16", "of_channel": "i32:16", "of_row": "i32:16", "of_column": 1}
    yield "thumbnail_kernel", {
        "inputs": "*fp16", "out": "*fp32", "first": "i32", "step": "i32", "cell": "i32",
        "of_image": "i32:16", "of_channel": 1, "of_row": "i32:16", "of_column": "i32"}
    for mapped, masked in ((True, False), (False, True), (True, True)):
        yield "grids_kernel", {
            "thumbnails": "*fp32", "projection": "*fp32", "shift": "*fp32", "maps": "*fp32",
            "level": "*fp32", "out": "*fp32", "components": "i32", "offset": "fp32",
            "dark": "fp32", "bright": "fp32", "MAPPED": mapped, "MASKED": masked,
            "COMPONENTS": COMPONENTS}
    yield "judge_kernel", {
        **dict.fromkeys(("d1", "d2", "d3", "o1", "o2", "o3", "grids"), "*fp32"),
        **{f"side{k}": "i32" for k in (1, 2, 3)}, "BLOCK": PIXELS}
