"""What 8 bits are made from, found on normal images: ranges of activations, shifts of biases."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx
import torch
from torch import Tensor

from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.building.judge import make_probe
from scrd_fast.errors import NotFiniteError, expect
from scrd_fast.graph.portable import NETWORK_INPUT, network_graph
from scrd_fast.graph.quantize import (
    KEEP,
    LARGEST,
    Quantisation,
    Ranges,
    convolution_names,
    quantise,
    quantised_tensors,
)
from scrd_fast.progress import Progress, silent
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec

_BINS = 4096
# Means settle early: with 16 to 128 images the decisions that flip are 0.2 to 0.5 % of the demo's.
_CORRECTED_ON = 32
_SEED = 20250314  # not the probe's: other patches than those a build is judged on


@dataclass
class _Histogram:
    """Counts of magnitudes over [0, top]; top doubles when a larger one comes."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))
    top: float = 0.0
    largest: float = 0.0

    def add(self, magnitudes: Tensor) -> None:
        largest = float(magnitudes.max())
        self.largest = max(self.largest, largest)
        if largest == 0:
            return
        self.top = self.top or largest
        while largest > self.top:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.cat([pairs, torch.zeros_like(pairs)])
            self.top *= 2
        self.counts += torch.histc(magnitudes, _BINS, 0, self.top)

    def clip(self) -> float:
        """The range of int8 with the smallest mean square error.

        Of a ResNet-18 trained for 250 steps at 64 px, rank correlation with the reference over 320
        images: 0.99955 this way; 0.99932 by the maximum, 0.99941 and 0.9984 by the percentiles
        99.99 and 99.9.
        """
        middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (self.top / _BINS)
        candidates = self.largest * torch.linspace(0.05, 1, 96, dtype=torch.float64)[:, None]
        step = candidates / LARGEST["int8"]
        rounded = torch.round(middles / step).clamp(max=LARGEST["int8"]) * step
        errors = ((rounded - middles) ** 2 * self.counts).sum(1)
        return float(candidates[errors.argmin()])


def range_pixels(spec: ScoringSpec, images: Any, count: int = 128) -> Tensor:
    """Pixels to measure ranges on: normal images, each as it is and with synthesised anomalies.

    images: normals as ops.preprocess takes them; at most count / 2 of them are used. Returns
    float32 (N, 3, S, S) in [0, 1], N at least `count`. Raises InputError.
    """
    expect(images is not None, "images",
           "normal images, which the ranges of 8 bits are measured on", None)
    probe = make_probe(spec, images, count, _SEED)
    assert probe.labels is not None
    return probe.pixels[probe.labels >= 0]  # odd content would widen every range


def _histograms(
    proto: onnx.ModelProto, spec: ScoringSpec, pixels: Tensor, batch_size: int, progress: Progress
) -> dict[str, _Histogram]:
    """Histograms of every tensor that can be quantised, by name."""
    network = network_graph(proto, spec, features=True)
    found = {name: _Histogram() for name in quantised_tensors(network)}
    runner = TorchNetwork(network, "fp32")
    done = 0
    for batch in pixels.split(batch_size):
        inputs = normalise(batch, spec)
        for name, value in _values(runner, inputs):
            if name in found:
                if not bool(torch.isfinite(value).all()):
                    raise NotFiniteError(f"pixels: expected finite values in every layer, got"
                                         f" others in {name!r}")
                found[name].add(value.abs())
        done += len(batch)
        progress(done, len(pixels), "measuring ranges")
    return found


@torch.no_grad()
def _values(runner: TorchNetwork, inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The network's input and the output of each of its nodes."""
    yield NETWORK_INPUT, inputs
    for _, name, value in runner.values(inputs):
        yield name, value


def measure_ranges(
    proto: onnx.ModelProto, spec: ScoringSpec, pixels: Tensor, *, batch_size: int = 8,
    progress: Progress = silent,
) -> Ranges:
    """The ranges of all tensors that can be quantised, from a float32 run on the CPU.

    proto: what graph.portable.build_graph gives; pixels: float32 (N, 3, S, S) in [0, 1], see
    `range_pixels`; progress: called with (done, total, what). Raises InputError,
    NotFiniteError, KeyError where `proto` is no such graph.
    """
    shape = (3, spec.input_size, spec.input_size)
    good = pixels.dtype == torch.float32 and pixels.shape[1:] == shape and len(pixels) > 0
    expect(good, "pixels", f"float32 (N, {', '.join(map(str, shape))}), N at least 1",
           f"{pixels.dtype} {tuple(pixels.shape)}")
    found = _histograms(proto, spec, pixels, batch_size, progress)
    return Ranges({name: h.largest for name, h in found.items()},
                  {name: h.clip() for name, h in found.items()})


class BiasCorrection:
    """Finds the shifts of biases by which every convolution keeps its channels' means."""

    def __init__(self, proto: onnx.ModelProto, spec: ScoringSpec, pixels: Tensor) -> None:
        """proto and pixels: as in `measure_ranges`; some of the pixels are used."""
        self._network = network_graph(proto, spec, features=True)
        # Spread over all of them: normals come first, anomalies last.
        some = torch.linspace(0, len(pixels) - 1, min(_CORRECTED_ON, len(pixels))).long()
        self._inputs = normalise(pixels[some], spec)
        names = set(convolution_names(self._network))
        self._means = {name: value.mean((0, 2, 3)) for name, value in self._values(self._network)
                       if name in names}

    @torch.no_grad()
    def _values(self, network: onnx.ModelProto) -> Iterator[tuple[str, Tensor]]:
        for name, _, value in TorchNetwork(network, "fp32").values(self._inputs):
            yield name, value

    def correct(self, quantisation: Quantisation, kind: str) -> Quantisation:
        """The same with the shifts for `kind`, found layer by layer, so that each sees its inputs
        as corrected before. One that is kept, too, where it reads what was quantised."""
        network = quantise(self._network, kind, replace(quantisation, shifts={}), base="fp32")
        shifts: dict[str, list[float]] = {}
        for name, value in self._values(network):
            if name in self._means:
                shift = self._means[name] - value.mean((0, 2, 3))
                if not bool(shift.any()):
                    continue
                value += shift[:, None, None]
                shifts[name] = [float(f"{each:.6g}") for each in shift]
        return replace(quantisation, shifts=shifts)


def measure_quantisation(
    proto: onnx.ModelProto, spec: ScoringSpec, images: Any, *, keep: Sequence[str] | None,
    int8_weight: float, progress: Progress,
) -> tuple[Quantisation, BiasCorrection]:
    """How to quantise a network, its biases as they are, and what shifts them.

    images: as in `range_pixels`; keep, int8_weight: as in Quantisation, None: graph.quantize.KEEP.
    """
    pixels = range_pixels(spec, images)
    ranges = measure_ranges(proto, spec, pixels, progress=progress)
    return (Quantisation(ranges, KEEP if keep is None else tuple(keep), int8_weight=int8_weight),
            BiasCorrection(proto, spec, pixels))
