"""anomalib's ReverseDistillation, the nearest thing to SCRD in a general library.

Another network (its bottleneck and decoder are its own) with random weights, another border rule of
the blur and the largest value of the map as score: what it gives cannot be compared, only the time
from pixels to score and map. Needs the extra `anomalib`.
"""

import logging
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scrd_fast.machine import bf16_is_capped


def missing() -> str | None:
    """Why it cannot run here."""
    if find_spec("anomalib") is None:
        return "anomalib is not installed; pip install 'scrd-fast[anomalib]'"
    return None


@cache
def _declare_operators() -> None:
    """torchvision built for CUDA describes its operators at import, which fails beside a PyTorch
    for CPUs: its own library, which declares them, cannot be loaded. None of them is called."""
    try:
        built_for_cpu = "+cpu" in version("torchvision")
    except PackageNotFoundError:
        return
    if torch.version.cuda is None and not built_for_cpu:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool"):
            library.define(f"{name}(Tensor a, Tensor b, float c) -> Tensor")
        _kept.append(library)


_kept: list[torch.library.Library] = []  # what a library declared goes with it


class Anomalib:
    """Scores batches in float32 PyTorch, or by its OpenVINO export as OpenVINO compiles it when
    nothing is asked for: on a CPU with bf16 in bf16, for which it must not try under a cap."""

    def __init__(self, backbone: str, side: int, *, openvino: bool) -> None:
        _declare_operators()
        from anomalib.models import ReverseDistillation

        logging.getLogger("anomalib").setLevel(logging.ERROR)
        model = ReverseDistillation(
            backbone=backbone, pre_trained=False, evaluator=False, visualizer=False,
            pre_processor=ReverseDistillation.configure_pre_processor((side, side))).eval()
        self._call: Any = model
        if openvino:
            import openvino as ov

            with tempfile.TemporaryDirectory() as folder:
                path = model.to_openvino(folder, input_size=(side, side))
                fp32 = {"INFERENCE_PRECISION_HINT": "f32"} if bf16_is_capped() else {}
                compiled = ov.Core().compile_model(
                    path, "CPU", {"PERFORMANCE_HINT": "LATENCY", **fp32})
            self._call = compiled.create_infer_request().infer
        self._openvino = openvino

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(N, S, S, 3) -> scores (N,) and maps (N, S, S)."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        if self._openvino:
            outputs = self._call([pixels.numpy()])
            named = {port.get_any_name(): value for port, value in outputs.items()}
            scores, maps = named["pred_score"], named["anomaly_map"]
        else:
            result = self._call(pixels)
            scores, maps = result.pred_score.numpy(), result.anomaly_map.numpy()
        return scores.reshape(len(images)), maps.reshape(len(images), *images.shape[1:3])
