"""Graphs whose precisions are explicit: form, types and scores; see test_quantize for 8 bits."""

import re

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from scrd_fast.errors import FidelityError, InputError
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.precision import explicit_graph
from scrd_fast.metrics.agreement import LIMITS, broken_limits
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec
from tests.support import explicit
from tests.support.models import read_spec

FLOATS = ("fp32", "fp16", "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["mean", "max"])
@pytest.mark.parametrize("weighting", ["none", "scale"])
@pytest.mark.parametrize("precision", FLOATS)
def test_form_of_every_spec(small, precision, weighting, reduction):
    spec = ScoringSpec(input_size=64, weighting=weighting, reduction=reduction)
    graph = explicit_graph(build_graph(small.model, spec), spec, precision)
    explicit.check_graph(graph, 64, explicit.OPSETS[precision])
    assert read_spec(graph) == spec


@pytest.mark.parametrize(("backbone", "precision"), [
    *(("resnet18", precision) for precision in FLOATS),
    pytest.param("wide_resnet50_2", "fp16", marks=pytest.mark.slow)])
def test_types(backbone, precision):
    """The network in the precision, all else float32, and casts where they meet only."""
    torch.manual_seed(0)
    spec = ScoringSpec(input_size=64, weighting="scale")
    graph = explicit_graph(build_graph(SCRD(backbone).eval(), spec), spec, precision)
    types = explicit.check_graph(graph, 64, explicit.OPSETS[precision])
    low, full = explicit.TYPES[precision], explicit.TYPES["fp32"]
    casts = [node for node in graph.graph.node if node.op_type == "Cast"]
    # One for the input; the three teacher and three student maps and the bottleneck's output.
    assert len(casts) == (0 if precision == "fp32" else 1 + 7)
    for node in graph.graph.node:
        inside = node.name.startswith("network/")
        assert inside or node.name.startswith("tail/")
        assert types[node.output[0]] == (low if inside else full), node.name
        if node not in casts:
            floats = {types[name] for name in node.input} - {onnx.TensorProto.INT64}
            assert floats == {low if inside else full}, node.name
    after = {node.output[0]: node.op_type for node in graph.graph.node}
    for node in graph.graph.node:
        if node.op_type == "Relu":
            assert after[node.input[0]] in ("Conv", "Add"), node.name


@pytest.mark.slow
@pytest.mark.parametrize("precision", FLOATS)
def test_scores_of_a_trained_model(trained, probe, precision):
    """bf16 has no kernels in onnxruntime on CPUs: float32 arithmetic, rounded after each node."""
    checkpoint, _ = trained
    graph = explicit_graph(build_graph(checkpoint.model, checkpoint.spec), checkpoint.spec,
                           precision)
    if precision == "bf16":
        graph = explicit.in_float32(graph)
    scores, maps, weights = explicit.run_onnxruntime(
        graph, explicit.normalised(checkpoint, probe), fuse=precision == "fp32")
    report = explicit.report_of(checkpoint, probe, scores, maps)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    if precision == "bf16":  # 8 bits of mantissa, and scores of a short training lie close
        assert report.rank_correlation >= 0.995
    else:
        assert broken_limits(report, LIMITS[precision]) == []


def scaled(checkpoint, name: str, factor: float) -> onnx.ModelProto:
    """The graph of a checkpoint with one weight changed."""
    proto = build_graph(checkpoint.model, checkpoint.spec)
    for weight in proto.graph.initializer:
        if weight.name == name:
            weight.CopyFrom(numpy_helper.from_array(
                (numpy_helper.to_array(weight) * factor).astype(np.float32), name))
    return proto


@pytest.mark.slow
def test_weights_that_do_not_fit(small):
    name = "student.layer2.0.conv1.weight"
    for factor, what in ((1e7, "expected values up to 65504, got"),
                         (1e-9, "expected values that do not all round to zero, got")):
        proto = scaled(small, name, factor)
        message = f"^precision 'fp16': weight {re.escape(repr(name))}: {what} "
        with pytest.raises(FidelityError, match=message):
            explicit_graph(proto, small.spec, "fp16")
        for wide in ("fp32", "bf16"):
            explicit_graph(proto, small.spec, wide)


@pytest.mark.parametrize("precision", ["int8", "auto", "FP16", ""])
def test_unknown_precisions(small, precision):
    message = f"^precision: expected one of .*, got {precision!r}$"
    with pytest.raises(InputError, match=message):
        explicit_graph(build_graph(small.model, small.spec), small.spec, precision)
