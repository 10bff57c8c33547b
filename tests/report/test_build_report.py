"""The page about a build, from manifests as builds write them."""

import re
import xml.etree.ElementTree
from dataclasses import replace

import pytest

import scrd_fast
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.manifest import Attempt, SearchRecord, SearchTry
from scrd_fast.errors import EngineFileError, OutputError
from scrd_fast.metrics.agreement import Report
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, save_checkpoint
from scrd_fast.model.scrd import SCRD
from scrd_fast.report.build_report import write_build_report
from scrd_fast.spec import ScoringSpec

pytest.importorskip("openvino", reason="builds for OpenVINO")
pytest.importorskip("matplotlib", reason="needs the report extra")

FIGURES = Report(images=207, map_error=0.02, score_error=0.01, rank_correlation=0.9998, auroc=0.9,
                 auroc_change=0.0, flipped=0.002)


@pytest.fixture(scope="module")
def engine_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    checkpoint = Checkpoint(SCRD("resnet18"), ScoringSpec(input_size=64),
                            ModelConfig("resnet18", "random"))
    path = save_checkpoint(checkpoint, folder / "model.safetensors")
    scrd_fast.build_engine(path, backend="openvino", precision="fp32").close()
    return folder / "model.scrd"


def svg_of(page: str) -> xml.etree.ElementTree.Element:
    return xml.etree.ElementTree.fromstring(re.search(r"<svg.*</svg>", page, re.DOTALL)[0])


def test_a_page_of_a_plain_build(engine_file, tmp_path):
    write_build_report(engine_file, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "resnet18, openvino fp32" in page
    assert page.count("<tr") == 2
    assert "<script" not in page
    svg_of(page)


def test_a_page_of_a_search(engine_file, tmp_path):
    """Every try is a row and a point; the chosen rows are marked, and texts are escaped."""
    manifest, members = read_engine_file(engine_file)
    keep = ("network/teacher.conv1", "network/teacher.layer1.0.")
    tries = tuple(SearchTry(keep[:n], 3.0 + n, FIGURES) for n in (1, 2))
    rows = (Attempt("bf16", why_not="bf16: <b>flipped</b>"), Attempt("fp32", 9.0, FIGURES),
            Attempt("int8", 4.0, FIGURES))
    changed = replace(manifest, precision="int8", fidelity=replace(
        manifest.fidelity, candidates=rows, search=SearchRecord(keep, {}, tries)))
    path = write_engine_file(tmp_path / "m.scrd", changed, members)
    write_build_report(path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<tr class=chosen>") == 2
    assert "&lt;b&gt;flipped" in page
    assert "<td>teacher.layer1.0.</td>" in page
    texts = re.findall(r"<!-- (.*?) -->", page)
    for text in ("1", "2", "fp32", "int8", "int8, by the number of names kept"):
        assert text in texts
    svg_of(page)


def test_errors(engine_file, tmp_path):
    with pytest.raises(EngineFileError):
        write_build_report(tmp_path / "none.scrd", tmp_path / "report.html")
    with pytest.raises(OutputError):
        write_build_report(engine_file, engine_file / "report.html")
