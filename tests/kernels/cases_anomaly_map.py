"""Arguments that the anomaly map's kernels are compiled for; see compile_kernels.py."""

from collections.abc import Iterator

from scrd_fast.kernels.anomaly_map import BLOCK, MEAN_CHUNK
from tests.kernels.compile_kernels import Arguments

WIDE = {"C0": 256, "C1": 512, "C2": 1024, "P0": 64 * 64, "P1": 32 * 32, "P2": 16 * 16}
SMALL = {"C0": 64, "C1": 128, "C2": 256, "P0": 32 * 32, "P1": 16 * 16, "P2": 8 * 8}


def cases() -> Iterator[tuple[str, Arguments]]:
    for network in (WIDE, SMALL):
        for dtype in ("fp32", "fp16", "bf16"):
            for last in (True, False):
                features = {f"{name}{k}": f"*{dtype}" for name in "ts" for k in range(3)}
                yield "distances_kernel", {
                    **features, **{f"d{k}": "*fp32" for k in range(3)}, "images": "i32", **network,
                    "LAST": last}
    # Windows of sigma 4 at 256 and 128 pixels, and of sigma 16.
    for size, windows in ((256, (32, 16, 16)), (128, (32, 16, 16)), (256, (64, 32, 16))):
        for weighted, maps, largest in ((True, True, True), (False, True, True),
                                        (True, False, True), (True, False, False)):
            yield "combine_kernel", {
                **{f"d{k}": "*fp32" for k in range(3)}, "weights": "*fp32", "bands": "*fp32",
                "starts": "*i32", "columns": "*fp32", "map_out": "*fp32", "mean_out": "*fp32",
                "largest_out": "*fp32", "images": "i32", "SIZE": size,
                **{f"S{k}": size // stride for k, stride in enumerate((4, 8, 16))},
                **{f"W{k}": window for k, window in enumerate(windows)},
                "WEIGHTED": weighted, "MAPS": maps, "LARGEST": largest, "BLOCK": BLOCK,
                "CHUNK": MEAN_CHUNK}
