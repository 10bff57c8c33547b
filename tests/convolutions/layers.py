"""The fused convolutions of networks, without their weights; whether a way computes one."""

import torch

from scrd_fast.backends.convolutions import is_right
from scrd_fast.backends.layers import Layer, Way, run_in_pytorch
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.quantize import BASE, Quantisation, Ranges, quantise, quantised_tensors
from scrd_fast.graph.tensors import DTYPES
from scrd_fast.model.scrd import SCRD
from scrd_fast.precisions import QUANTISED
from scrd_fast.spec import ScoringSpec


def layers_of(backbone: str, side: int, images: int, precision: str) -> list[Layer]:
    """The distinct convolutions of a network, found on tensors without data."""
    spec = ScoringSpec(input_size=side)
    proto = build_graph(SCRD(backbone).eval(), spec)
    graph, base = network_graph(proto, spec, features=True), precision
    if precision in QUANTISED:
        ones = dict.fromkeys(quantised_tensors(graph), 1.0)
        graph, base = quantise(graph, precision, Quantisation(Ranges(ones, ones))), BASE
    network = TorchNetwork(graph, base, device=torch.device("meta"), fuse=True)
    return network.layers(torch.empty(images, 3, side, side, dtype=DTYPES[base], device="meta"))


def computes(layer: Layer, way: Way, device: torch.device) -> bool:
    """`is_right` of operands drawn for the layer."""
    operands = layer.draw_operands(device)
    return is_right(layer, way, operands, run_in_pytorch(layer, operands))
