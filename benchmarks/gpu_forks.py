"""A network in two lanes of a GPU: what is not on its longest path runs beside it.

An experiment of `gpu_lab`: convolutions of one image are too small to fill a GPU, and a block's
shortcut needs nothing of the convolutions that it goes around.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from scrd_fast.backends.fusion import Node
from scrd_fast.backends.torch_network import TorchNetwork
from scrd_fast.graph.portable import NETWORK_INPUT

Lanes = list[tuple[Node, int]]


def assign_lanes(nodes: Sequence[Node]) -> Lanes:
    """The nodes in an order in which each can start early, each with its lane: 0 on the longest
    path of the network, 1 beside.

    nodes: each behind those whose outputs it reads; what none of them writes is there from the
    beginning. A convolution is as long as its kernel has pixels, anything else 1.
    """
    made = {node.output: node for node in nodes}
    start: dict[str, int] = {}  # how long what has to be done before takes
    end: dict[str, int] = {}
    for node in nodes:
        start[node.output] = max((end[n] for n in node.inputs if n in made), default=0)
        end[node.output] = start[node.output] + prod(node.attributes.get("kernel_shape", [1]))
    path, name = set(), max(end, key=end.__getitem__)
    while name in made:
        path.add(name)
        name = max((n for n in made[name].inputs if n in made), key=end.__getitem__, default="")
    return [(node, int(node.output not in path))
            for node in sorted(nodes, key=lambda node: start[node.output])]


class ForkedNetwork:
    """A network that is captured in two lanes, of the capturing stream and of one of its own."""

    def __init__(self, network: TorchNetwork, device: torch.device) -> None:
        self._network, self._side = network, torch.cuda.Stream(device)
        self._lanes = assign_lanes(network.nodes)
        lane_of = {node.output: lane for node, lane in self._lanes} | {NETWORK_INPUT: 0}
        self._crossing = {name for node, lane in self._lanes for name in node.inputs
                          if lane_of.get(name, lane) != lane}

    @torch.no_grad()
    def run(self, pixels: Tensor) -> list[Tensor]:
        """As TorchNetwork.run. Every value is kept to the end, when both lanes have met: the
        allocator would give one that is let go to its own lane, while the other still reads it."""
        network, main = self._network, torch.cuda.current_stream()
        streams = (main, self._side)
        values = {NETWORK_INPUT: pixels.contiguous(memory_format=torch.channels_last)}
        self._side.wait_stream(main)
        done: dict[str, torch.cuda.Event] = {}
        for node, lane in self._lanes:
            with torch.cuda.stream(streams[lane]):
                for name in node.inputs:
                    if name in done:  # the lane that made it need not wait, and is there anyway
                        streams[lane].wait_event(done[name])
                values[node.output] = network.compute(node, [
                    network.weights[n] if n in network.weights else values[n]
                    for n in node.inputs])
                if node.output in self._crossing:
                    done[node.output] = streams[lane].record_event()
        main.wait_stream(self._side)
        return [values[name] for name in network.outputs]
