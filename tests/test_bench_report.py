"""Stored benchmark results, and what is made of them."""

import pytest

from benchmarks import report, results

RAW = {"benchmarks": [
    {"name": f"test_engine_against_published_loop[{precision}]",
     "fullname": "benchmarks/test_bench_engine.py::test_engine_against_published_loop",
     "stats": {"min": 0.05, "median": 0.06, "max": 0.07, "data": [0.05, 0.06, 0.07]},
     "extra_info": {"peer": "published loop", "ours_ms": 60.0, "peer_ms": 180.0, "ratio": ratio,
                    "ratio_min_max": [ratio - 0.1, ratio + 0.1], "wanted": "at least 3",
                    "judged": True}}
    for precision, ratio in (("fp32", 2.0), ("bf16", 3.5))] + [
    {"name": "test_share_of_the_peak[bf16]",
     "fullname": "benchmarks/test_bench_engine.py::test_share_of_the_peak[bf16]",
     "stats": {"min": 0.05, "median": 0.06, "max": 0.07, "data": [0.05, 0.06, 0.07]},
     "extra_info": {"rates": {"bf16": 1e12, "copy": 4e10}, "operations": {"bf16": 6e10},
                    "weight_bytes": 2e8, "peer_ms": 60.0, "ours_ms": 65.0, "ratio": 0.92,
                    "limit": {"by": "arithmetic", "ms": 60.0, "share": 0.92}}}]}
HERE = {"cpu": "Some <CPU>", "cores": 2, "threads": 2, "load_average": 1.7, "busy": True,
        "torch": "2.13"}


@pytest.fixture
def result(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "commit", lambda: "abc1234")
    path = results.store(HERE, results.figures(RAW), RAW)
    assert path.parent.name == "some-cpu"
    assert path.stem.endswith("-abc1234")
    assert path.with_suffix(".raw.json.gz").exists()
    return results.stored(path)


def test_a_table(result):
    lines = report.markdown(result).splitlines()
    assert lines[2] == ("| whole path: fp32 | 60 | published loop | 180 | 2.00 (1.90 to 2.10) |"
                        " at least 3 |  | **MISSED** |")
    assert lines[3].endswith("| at least 3 |  | kept |")
    assert lines[4].endswith("| 60 | 0.92 |  | 92%, arithmetic |  |")
    assert "(BUSY)" in lines[-1]
    assert "MISSED" in results.table(result["figures"]).splitlines()[0]


def test_a_page(result):
    pytest.importorskip("matplotlib", reason="draws the plots")
    page = report.web_page(RAW, result)
    assert page.count("class=missed") == 1
    assert "Some &lt;CPU&gt;" in page
    assert "<svg" in page
    part = {"benchmarks": RAW["benchmarks"][2:]}
    assert "<svg" in report.web_page(part, result | {"figures": results.figures(part)})


def run(commit: str, *ratios: float) -> dict:
    return {"commit": commit, "figures": [{"of": "engine", "name": str(k), "ratio": ratio}
                                          for k, ratio in enumerate(ratios)]}


def test_what_moved_by_more_than_two_runs_of_one_commit_differ():
    runs = [run("a", 2.0, 3.0), run("a", 2.1, 3.0), run("b", 2.2, 3.3)]
    assert report.noise(runs) == {("engine", "0"): pytest.approx(0.05), ("engine", "1"): 0.0}
    assert report.compare("a", "b", runs) == ["engine: 0: 2.05 -> 2.2 (+7.3%, noise 5.0%)",
                                              "engine: 1: 3 -> 3.3 (+10.0%, noise 0.0%)"]
    runs = [run("a", 2.0, 3.0), run("b", 2.2, 3.3), run("b", 2.0, 3.3)]
    assert report.compare("a", "b", runs) == ["engine: 1: 3 -> 3.3 (+10.0%, noise 0.0%)"]


def test_noise_that_no_commit_tells():
    (line,) = report.compare("a", "b", [run("a", 2.0), run("b", 9.0)])
    assert line.startswith("noise unknown of 1 figures")
    assert line.endswith("(run make bench again): engine: 0")


def test_two_runs_of_a_day_and_commit_are_both_kept(result, tmp_path):
    first = RAW | {"datetime": "2026-01-01T00:00:00"}
    again = RAW | {"datetime": "2026-01-01T10:00:00"}
    paths = [results.store(HERE, results.figures(raw), raw, revision="ab") for raw in
             (first, again, first)]
    assert [path.name for path in paths] == ["2026-01-01-ab.json", "2026-01-01-ab-2.json",
                                             "2026-01-01-ab.json"]
    assert [r["time"] for r in results.history(HERE)][:2] == [first["datetime"], again["datetime"]]


def test_at_most():
    wanted = {"wanted": "at most 1.02", "judged": True}
    assert results.kept({"ratio": 1.01, **wanted})
    assert not results.kept({"ratio": 1.03, **wanted})
    assert results.kept({"ratio": 1.0}) is None
    assert results.kept({"ratio": 1.03, **wanted, "judged": False}) is None


def test_the_page_shows_the_newest_result():
    page = report.PAGE.read_text()
    assert report.with_table(page) == page, "run: make benchmarks-page"
