"""What a user would run instead, in our own words; each gives the same score and map."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from scrd_fast.graph.portable import NETWORK_INPUT, build_graph
from scrd_fast.model.scrd import SCRD
from scrd_fast.ops.preprocess import preprocess
from scrd_fast.reference.anomaly_map import COSINE_EPS, upsample_blur_matrix
from scrd_fast.spec import STRIDES, ScoringSpec


def published_map(
    teacher: Sequence[Tensor], student: Sequence[Tensor], spec: ScoringSpec
) -> NDArray[np.float64]:
    """Three feature maps (1, C, h, w) twice -> the map (S, S), as the published evaluation does.

    For each scale 1 - cosine similarity, bilinear upsampling with align_corners, and a sum in
    NumPy, then SciPy's Gaussian; the score is the mean. Source: arXiv 2503.13828 and its published
    evaluation, which scores with weights that cancel.
    """
    side = spec.input_size
    total = np.zeros((side, side))
    for t, s in zip(teacher, student, strict=True):
        distance = 1 - F.cosine_similarity(t, s)
        large = F.interpolate(distance[:, None], size=side, mode="bilinear", align_corners=True)
        total += large[0, 0].numpy()
    blurred: NDArray[np.float64] = gaussian_filter(total, sigma=spec.blur_sigma)
    return blurred


class PublishedLoop:
    """The published evaluation: eager float32, a forward pass and `published_map` per image."""

    def __init__(self, model: SCRD, spec: ScoringSpec) -> None:
        self.model, self.spec = model.eval(), spec

    @torch.no_grad()
    def score(self, images: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(N, H, W, 3) uint8 -> scores (N,) and maps (N, S, S)."""
        maps = []
        for image in images:
            features = self.model(preprocess(image[None], self.spec))
            maps.append(published_map(features.teacher, features.student, self.spec))
        return np.array([m.mean() for m in maps]), np.stack(maps)


class PublishedStep:
    """The published training step: eager, one precision throughout, channels first.

    The whole network runs on the clean and on the noisy images; of the second pass only the
    teacher's maps are used, and what it does to the BatchNorm statistics. Source: arXiv 2503.13828,
    section 3.2, and the published code's optimiser.
    """

    def __init__(self, model: SCRD) -> None:
        self.model = model.train()
        self.optimiser = torch.optim.Adam(
            [*model.bottleneck.parameters(), *model.student.parameters()], lr=1e-3,
            betas=(0.5, 0.999))

    def __call__(self, clean: Tensor, noisy: Tensor) -> Tensor:
        """One update on normalised images (N, 3, S, S); the loss ()."""
        normal, anomalous = self.model(clean), self.model(noisy)
        numerator, denominator = (
            torch.stack([(1 - F.cosine_similarity(t.flatten(1), s.flatten(1))).mean()
                         for t, s in zip(teacher, normal.student, strict=True)]).sum()
            for teacher in (normal.teacher, anomalous.teacher)
        )
        loss = numerator / denominator
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        return loss.detach()


class PublishedTail(torch.nn.Module):
    """The published post-processing where the features are: `published_map` of a batch, the blur
    as two convolutions with the borders repeated as SciPy does."""

    def __init__(self, spec: ScoringSpec, device: torch.device) -> None:
        super().__init__()
        self.side = spec.input_size
        radius = int(4 * spec.blur_sigma + 0.5)
        weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / spec.blur_sigma) ** 2)
        self.kernel = (weights / weights.sum()).view(1, 1, -1, 1).to(device)
        within = np.pad(np.arange(self.side), radius, mode="symmetric")
        self.padded = torch.from_numpy(within).to(device)

    def forward(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
        """Three feature maps (N, C, h, w) twice -> maps (N, S, S), float32."""
        total = torch.zeros((), device=self.kernel.device)
        for t, s in zip(teacher, student, strict=True):
            distance = 1 - F.cosine_similarity(t.float(), s.float())
            total = total + F.interpolate(distance[:, None], size=self.side, mode="bilinear",
                                          align_corners=True)
        padded = total[:, :, self.padded][:, :, :, self.padded]
        blurred = F.conv2d(F.conv2d(padded, self.kernel), self.kernel.transpose(2, 3))
        return blurred[:, 0]


class PublishedInTorch(torch.nn.Module):
    """The published model and its post-processing on one device, in one dtype, channels-last."""

    def __init__(self, model: SCRD, spec: ScoringSpec, dtype: torch.dtype,
                 device: torch.device) -> None:
        super().__init__()
        self.model = model.eval().to(device, dtype)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.tail = PublishedTail(spec, device)
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1)
                               for v in (spec.mean, spec.std))
        self.dtype = dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, S, S, 3) of the network's size -> scores (N,) and maps (N, S, S)."""
        pixels = (images.permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        features = self.model(pixels.to(self.dtype, memory_format=torch.channels_last))
        maps = self.tail(features.teacher, features.student)
        return maps.mean(dim=(1, 2)), maps


class EagerTorch:
    """What a careful user of PyTorch runs on a CPU: `PublishedInTorch` in bf16, or in fp32 where
    the CPU has no bf16, or, `compiled`, what torch.compile makes of it with its weights frozen."""

    def __init__(self, model: SCRD, spec: ScoringSpec, *, precision: str, compiled: bool) -> None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        network = PublishedInTorch(model, spec, dtype, torch.device("cpu"))
        self._call: Any = network
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self._call = torch.compile(network, dynamic=False)

    @torch.no_grad()
    def score(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(N, S, S, 3) -> scores (N,) and maps (N, S, S)."""
        scores, maps = self._call(torch.from_numpy(images))
        return scores.numpy(), maps.numpy()


class OnnxRuntime:
    """The exported graph, from uint8 pixels on, in onnxruntime with as many threads as PyTorch."""

    def __init__(self, model: SCRD, spec: ScoringSpec) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            build_graph(model, spec).SerializeToString(), options,
            providers=["CPUExecutionProvider"])

    def score(self, images: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        """(N, S, S, 3) -> scores (N,) and maps (N, S, S)."""
        scores, maps = self._session.run(["score", "map"], {"images": images})
        return scores, maps


class _WholeModel(torch.nn.Module):
    """Normalised pixels -> score and map, for a converter to trace."""

    def __init__(self, model: SCRD, spec: ScoringSpec) -> None:
        super().__init__()
        self.model = model.eval()
        self.matrices = [
            torch.tensor(upsample_blur_matrix(spec.input_size, spec.input_size // stride,
                                              float(spec.blur_sigma)), dtype=torch.float32)
            for stride in STRIDES]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.model(pixels)
        total = torch.zeros(())
        for teacher, student, u in zip(features.teacher, features.student, self.matrices,
                                       strict=True):
            # Written out: the converter has no rule for cosine_similarity.
            norms = [f.square().sum(dim=1).sqrt().clamp(min=COSINE_EPS) for f in (teacher, student)]
            total = total + u @ (1 - (teacher * student).sum(dim=1) / (norms[0] * norms[1])) @ u.T
        return total.mean(dim=(1, 2)), total


class PlainOpenVino:
    """The model as one OpenVINO graph behind its Python API, fed with ready-made floats.

    variant: "converted" from PyTorch by openvino.convert_model, or our exported graph with any
    ("dynamic") or one ("static") batch size. precision: "fp32" or "bf16", as a hint.
    """

    VARIANTS = ("converted", "dynamic", "static")

    def __init__(self, model: SCRD, spec: ScoringSpec, variant: str, precision: str) -> None:
        import openvino

        shape = [1, 3, spec.input_size, spec.input_size]
        core = openvino.Core()
        if variant == "converted":
            with torch.no_grad():
                graph = openvino.convert_model(_WholeModel(model, spec),
                                               example_input=torch.zeros(shape), input=[shape])
        else:
            proto = build_graph(model, spec)
            kept = [node for node in proto.graph.node if not node.name.startswith("preprocess/")]
            del proto.graph.node[:]
            proto.graph.node.extend(kept)
            entry = proto.graph.input[0]
            entry.name, entry.type.tensor_type.elem_type = NETWORK_INPUT, 1
            for dim, length in zip(entry.type.tensor_type.shape.dim[1:], shape[1:], strict=True):
                dim.dim_value = length
            graph = core.read_model(io.BytesIO(proto.SerializeToString()))
            if variant == "static":
                graph.reshape(shape)
        compiled = core.compile_model(graph, "CPU", {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        })
        self._request = compiled.create_infer_request()

    def score(self, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float32],
                                                          NDArray[np.float32]]:
        """(1, 3, S, S) normalised float32 -> scores (1,) and maps (1, S, S)."""
        outputs = self._request.infer([pixels])
        return outputs[0].copy(), outputs[1].copy()
