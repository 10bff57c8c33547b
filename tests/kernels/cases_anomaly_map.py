"""Arguments that the anomaly map's kernels are compiled for; see compile_kernels.py."""

from collections.abc import Iterator

from scrd_fast.kernels.anomaly_map import BLOCK, COLUMNS, MEAN_CHUNK, rows_of_a_tile
from tests.kernels.compile_kernels import Arguments


def cases() -> Iterator[tuple[str, Arguments]]:
    sizes = {f"{name}{k}": "i32:16" for name in "cp" for k in (1, 2, 3)}
    for dtype in ("fp32", "fp16", "bf16"):
        for last in (True, False):
            yield "distances_kernel", {
                **{f"{name}{k}": f"*{dtype}" for name in "ts" for k in (1, 2, 3)},
                **{f"d{k}": "*fp32" for k in (1, 2, 3)}, "images": "i32", **sizes, "LAST": last}
    # All dtypes of this one are compiled in tests/tensorrt/test_plugin.py.
    for last in (True, False):
        yield "plugin_distances_kernel", {
            **{f"{name}{k}": "*fp16" for name in "ts" for k in (1, 2, 3)},
            **{f"d{k}": "*fp32" for k in (1, 2, 3)}, "C1": 256, "C2": 512, "C3": 1024,
            "P1": 4096, "P2": 1024, "P3": 256, "LAST": last, "FAST": 128, "SLOW": 16}
    # Windows of sigma 4 and of sigma 16.
    for windows in ((32, 16, 16), (64, 32, 16)):
        for weighted, maps, largest in ((True, True, True), (False, True, True),
                                        (True, False, True), (True, False, False)):
            yield "combine_kernel", {
                **{f"d{k}": "*fp32" for k in (1, 2, 3)}, "weights": "*fp32", "bands": "*fp32",
                "starts": "*i32", "columns": "*fp32", "map_out": "*fp32", "mean_out": "*fp32",
                "largest_out": "*fp32", "size": "i32:16",
                **{f"side{k}": "i32:16" for k in (1, 2, 3)},
                **{f"W{k + 1}": window for k, window in enumerate(windows)},
                "WEIGHTED": weighted, "MAPS": maps, "LARGEST": largest, "BLOCK": BLOCK,
                "CHUNK": MEAN_CHUNK, "ROWS": rows_of_a_tile(windows),
                "COLUMNS": COLUMNS}
