"""Weights of 8 bits on a CPU without VNNI, where sums of their products saturate."""

import json
import warnings

import pytest

from scrd_fast.backends.backend import CompileRequest
from scrd_fast.backends.registry import backend_of, native_precisions
from scrd_fast.backends.source import Source
from scrd_fast.building.ranges import measure_ranges, range_pixels
from scrd_fast.errors import EngineFileError
from scrd_fast.graph.portable import build_graph
from scrd_fast.graph.quantize import Quantisation
from scrd_fast.machine import CAP, why_no_vnni
from scrd_fast.precisions import LARGEST, UNSATURATED
from tests.support.models import organs

if backend_of("openvino").missing() or "int8" not in native_precisions("openvino"):
    pytest.skip("OpenVINO does not compute in int8 here", allow_module_level=True)


@pytest.mark.slow
def test_compiling_them_warns_where_there_is_no_vnni(small, monkeypatch):
    """The cap is set after oneDNN has read it: nothing else changes."""
    proto = build_graph(small.model, small.spec)
    side = small.spec.input_size
    ranges = measure_ranges(proto, small.spec, range_pixels(small.spec, organs(4, side)))
    monkeypatch.setenv(CAP, "AVX2")
    assert why_no_vnni()

    def compile_with(weight: float) -> None:
        source = Source.of(proto, Quantisation(ranges, int8_weight=weight))
        assert source.int8_weight == weight
        backend_of("openvino").compile(CompileRequest(source, small.spec, "int8", (1,)))

    with pytest.warns(UserWarning, match=f"^precision 'int8': .* here, as {why_no_vnni()}"):
        compile_with(LARGEST["int8"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_with(UNSATURATED)


@pytest.mark.parametrize(
    "stored", [b"[]", b"{", b'{"int8_weight": "much"}', b'{"int8_weight": []}'])
def test_a_quantisation_that_is_none(stored):
    with pytest.raises(EngineFileError, match=r"^quantisation\.json: "):
        _ = Source(b"", stored).int8_weight


def test_older_files_have_weights_of_8_bits():
    assert Source(b"", json.dumps({"keep": []}).encode()).int8_weight == LARGEST["int8"]
