"""The page about a build, from manifests as builds write them."""

import re
import xml.etree.ElementTree
from dataclasses import replace

import pytest

from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.engine.manifest import Attempt, SearchRecord, SearchTry
from scrd_fast.errors import EngineFileError, OutputError
from scrd_fast.metrics.agreement import Report
from scrd_fast.report.build_report import list_plots, write_build_report

pytest.importorskip("openvino", reason="builds for OpenVINO")
pytest.importorskip("jinja2", reason="needs the report extra")

FIGURES = Report(images=207, map_error=0.02, score_error=0.01, rank_correlation=0.9998, auroc=0.9,
                 auroc_change=0.0, flipped=0.002)


def svgs_of(page: str) -> list[xml.etree.ElementTree.Element]:
    return [xml.etree.ElementTree.fromstring(each)
            for each in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def test_a_page_of_a_plain_build(small_file, tmp_path):
    write_build_report(small_file, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "resnet18, openvino fp32" in page
    assert page.count("<tr") == 2
    assert "<script" not in page
    assert "script-src &#39;none&#39;" in page
    assert len(svgs_of(page)) == 1


def test_a_page_of_a_search(small_file, tmp_path):
    """Every try is a row and a point; the chosen rows are marked, and texts are escaped."""
    manifest, members = read_engine_file(small_file)
    keep = ("network/teacher.conv1", "network/teacher.layer1.0.")
    tries = (SearchTry((), 2.5, FIGURES),
             *(SearchTry(keep[:n], 3.0 + n, FIGURES) for n in (1, 2)))
    rows = (Attempt("bf16", why_not="bf16: <b>flipped</b>"), Attempt("fp32", 9.0, FIGURES),
            Attempt("int8", 4.0, replace(FIGURES, score_error=0.0003)))
    changed = replace(manifest, precision="int8", fidelity=replace(
        manifest.fidelity, candidates=rows,
        search=SearchRecord(keep, {"<i>block": 0.5}, tries)))
    path = write_engine_file(tmp_path / "m.scrd", changed, members)
    write_build_report(path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count('<tr class="chosen">') == 2
    assert "&lt;b&gt;flipped" in page
    assert "&lt;i&gt;block" in page
    assert "<bdi>teacher.layer1.0.</bdi>" in page
    texts = [[each.text for each in svg.iter("text") if each.get("class") == "name"]
             for svg in svgs_of(page)]
    assert texts == [["fp32", "int8"], ["0", "1", "2"]]


def test_places_of_points(small_file):
    """Right is slower, up is less exact; errors are on a logarithmic scale, whose ticks say so."""
    manifest, _ = read_engine_file(small_file)

    def plot(*points):
        return list_plots(replace(manifest, fidelity=replace(manifest.fidelity, candidates=tuple(
            Attempt(name, ms, replace(FIGURES, score_error=error)) for name, ms, error in points),
        )))[0]

    drawn = plot(("a", 1.0, 1e-6), ("b", 2.0, 1e-4), ("c", 5.0, 1e-2))
    a, b, c = drawn.points
    assert b.x - a.x == pytest.approx((c.x - a.x) / 4, abs=0.02)
    assert a.y - b.y == pytest.approx(b.y - c.y, abs=0.02)
    assert a.y > c.y
    assert drawn.left < a.x < c.x < drawn.right
    assert drawn.bottom > a.y > c.y > drawn.top
    powers = {tick.text: tick.at for tick in drawn.y_ticks}
    assert powers["0.0001"] == pytest.approx(b.y, abs=0.02)
    assert {tick.text for tick in drawn.x_ticks} >= {"2", "4"}
    for points in ([("a", 3.0, 0.0)], [("a", 3.0, 1e-7)], [("a", 3.0, 0.0), ("b", 3.0, 0.1)],
                   [("a", 1e-3, 1e-9), ("b", 1e4, 0.9)]):
        drawn = plot(*points)
        assert all(drawn.top <= each.y <= drawn.bottom for each in drawn.points)
        assert all(drawn.left <= each.x <= drawn.right for each in drawn.points)
        for ticks in (drawn.x_ticks, drawn.y_ticks):
            assert 2 <= len(ticks) <= 12
            assert len({tick.text for tick in ticks}) == len(ticks)


def test_errors(small_file, tmp_path):
    with pytest.raises(EngineFileError):
        write_build_report(tmp_path / "none.scrd", tmp_path / "report.html")
    with pytest.raises(OutputError):
        write_build_report(small_file, small_file / "report.html")
