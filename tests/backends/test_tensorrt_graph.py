"""What the TensorRT backend asks of an explicit graph; needs no TensorRT."""

import pytest
import torch

from scrd_fast.building.ranges import measure_ranges
from scrd_fast.graph.portable import build_graph, network_graph
from scrd_fast.graph.precision import explicit_graph, precision_counts, scoring_graph
from scrd_fast.graph.quantize import Quantisation, quantise

pytest.importorskip("triton", reason="the plugin is made from a Triton kernel")


@pytest.fixture(scope="module")
def graphs(small):
    proto = build_graph(small.model, small.spec)
    ranges = measure_ranges(proto, small.spec, torch.rand(4, 3, 64, 64))
    made = {p: explicit_graph(proto, small.spec, p) for p in ("fp32", "fp16", "bf16")}
    return proto, made | {"int8": quantise(
        scoring_graph(proto, small.spec), "int8", Quantisation(ranges))}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_the_plugin_reads_the_features(graphs, small, precision):
    from scrd_fast.backends.tensorrt.plugin import feature_names

    proto, made = graphs
    cut = network_graph(proto, small.spec, features=True)
    assert feature_names(made[precision]) == [output.name for output in cut.graph.output][:6]


@pytest.mark.parametrize(("precision", "convolutions"), [
    ("fp32", {"f32": 38}), ("fp16", {"f16": 38}), ("bf16", {"bf16": 38}),
    ("int8", {"i8": 32, "f16": 6})])
def test_precisions_are_counted(graphs, precision, convolutions):
    """All but a shortcut, the stem and the first stage of the teacher of an int8 network."""
    counts = precision_counts(graphs[1][precision])
    assert counts["convolutions"] == convolutions
    assert list(counts["tail"]) == ["f32"]
