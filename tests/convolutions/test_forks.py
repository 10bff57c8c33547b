"""Which nodes of a network run beside its longest path; see benchmarks/gpu_forks.py."""

import pytest
import torch

from benchmarks.gpu_forks import ForkedNetwork, assign_lanes
from scrd_fast.backends.fusion import Node
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec


def chain(*steps: tuple[str, tuple[str, ...]]) -> list[Node]:
    return [Node("Add", inputs, output, output, torch.float32) for output, inputs in steps]


def network(device: torch.device) -> TorchNetwork:
    torch.manual_seed(2)
    spec = ScoringSpec(input_size=64)
    graph = network_graph(build_graph(SCRD("resnet18").eval(), spec), spec, features=True)
    return TorchNetwork(graph, "fp32", device=device, fuse=True)


def test_a_shortcut_is_beside_what_it_goes_around():
    """And starts as early as its input is there, whenever it is written."""
    nodes = chain(("a", ("x",)), ("b", ("a",)), ("c", ("b",)), ("short", ("a",)),
                  ("sum", ("c", "short", "weight")))
    lanes = assign_lanes(nodes)
    assert {node.output: lane for node, lane in lanes} == {
        "a": 0, "b": 0, "c": 0, "short": 1, "sum": 0}
    assert [node.output for node, lane in lanes].index("short") < 3


def test_what_is_beside_in_a_network():
    """Projections of blocks, and the bottleneck's convolutions of the teacher's earlier stages."""
    ours = network(torch.device("meta"))
    lanes = assign_lanes(ours.nodes)
    assert sorted(node.output for node, _ in lanes) == sorted(node.output for node in ours.nodes)
    there = set(ours.weights) | {"network_input"}
    for node, _ in lanes:  # each behind what it reads
        assert set(node.inputs) <= there
        there.add(node.output)
    beside = {node.name for node, lane in lanes if lane}
    assert {name for name in beside if name.endswith(".shortcut")} == {
        node.name for node in ours.nodes if node.name.endswith(".shortcut")}
    assert {name for name in beside if name.startswith("network/bottleneck.conv")} >= {
        "network/bottleneck.conv1", "network/bottleneck.conv2"}
    assert "network/teacher.conv1" not in beside


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_two_lanes_give_what_one_gives():
    device = torch.device("cuda")
    ours = network(device)
    forked = ForkedNetwork(ours, device)
    pixels = torch.randn(2, 3, 64, 64, device=device)
    for _ in range(20):
        for one, other in zip(forked.run(pixels), ours.run(pixels), strict=True):
            assert torch.equal(one, other)
