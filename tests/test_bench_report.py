"""Stored benchmark results, and what is made of them."""

import json

import pytest

from benchmarks import report, results

RAW = {"benchmarks": [
    {"name": f"test_engine_against_published_loop[{precision}]",
     "fullname": "benchmarks/test_bench_engine.py::test_engine_against_published_loop",
     "stats": {"min": 0.05, "median": 0.06, "max": 0.07, "data": [0.05, 0.06, 0.07]},
     "extra_info": {"peer": "published", "engine_ms": 60.0, "peer_ms": 180.0, "ratio": ratio,
                    "ratio_min_max": [ratio - 0.1, ratio + 0.1], "wanted": "at least 3",
                    "judged": True}}
    for precision, ratio in (("fp32", 2.0), ("bf16", 3.5))] + [
    {"name": "test_share_of_the_peak[bf16]",
     "fullname": "benchmarks/test_bench_engine.py::test_share_of_the_peak[bf16]",
     "stats": {"min": 0.05, "median": 0.06, "max": 0.07, "data": [0.05, 0.06, 0.07]},
     "extra_info": {"rates": {"bf16": 1e12, "copy": 4e10}, "operations": {"bf16": 6e10},
                    "weight_bytes": 2e8, "limit_ms": 60.0, "engine_ms": 65.0, "ratio": 0.92}}]}
HERE = {"cpu": "Some <CPU>", "cores": 2, "threads": 2, "load_average": 1.7, "busy": True,
        "torch": "2.13"}


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "abc1234")
    path = results.store(HERE, results.figures(RAW), RAW, time="2026-01-01T00:00:00+00:00")
    assert path.parent.name == "some-cpu"
    assert path.stem.endswith("-abc1234")
    assert path.with_suffix(".raw.json.gz").exists()
    return results.stored(path)


def test_a_table(result):
    lines = report.markdown(result).splitlines()
    assert lines[2] == ("| engine: engine against published loop [fp32] | 60 | 180 |"
                        " 2.00 (1.90 to 2.10) | at least 3 | **MISSED** |")
    assert lines[3].endswith("| at least 3 | kept |")
    assert lines[4].endswith("| 0.92 |  |  |")
    assert "(BUSY)" in lines[-1]
    assert "MISSED" in results.table(result["figures"]).splitlines()[0]


def test_a_page(result):
    pytest.importorskip("matplotlib", reason="needs the report extra")
    page = report.web_page(RAW, result)
    assert page.count("class=missed") == 1
    assert "Some &lt;CPU&gt;" in page
    assert "<svg" in page
    part = {"benchmarks": RAW["benchmarks"][2:]}
    assert "<svg" in report.web_page(part, result | {"figures": results.figures(part)})


def test_what_moved(result):
    other = json.loads(json.dumps(result))
    assert report.compare(result, other) == []
    other["figures"][1] |= {"ratio": 4.0, "ratio_min_max": [3.9, 4.1]}
    (line,) = report.compare(result, other)
    assert line == ("test_engine_against_published_loop[bf16]: 3.50 (3.40 to 3.60) -> 4.00 (3.90"
                    " to 4.10)")


def test_at_most():
    wanted = {"wanted": "at most 1.02", "judged": True}
    assert results.kept({"ratio": 1.01, **wanted})
    assert not results.kept({"ratio": 1.03, **wanted})
    assert results.kept({"ratio": 1.0}) is None
    assert results.kept({"ratio": 1.03, **wanted, "judged": False}) is None


def test_the_readme_shows_the_newest_result():
    readme = report.README.read_text()
    assert report.with_table(readme) == readme, "run: make readme-table"
