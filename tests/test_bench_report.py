"""Stored benchmark results, and what is made of them."""

import pytest

from benchmarks import classes, report, results

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


@pytest.mark.slow
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


def test_which_of_two_times_moved():
    runs = [run("a", 2.0), run("b", 4.0), run("b", 4.0)]
    for each, ours, peer in zip(runs, (1.5, 1.5, 1.5), (3.0, 6.0, 6.0), strict=True):
        each["figures"][0] |= {"ours_ms": ours, "peer_ms": peer}
    assert report.compare("a", "b", runs) == [
        "engine: 0: 2 -> 4 (+100.0%, noise 0.0%); ours 1.5 -> 1.5 ms; peer 3 -> 6 ms"]


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
    assert report.with_tables(page) == page, "run: make benchmarks-page"


def stored_engine(time: str, ours_ms: float, precisions=("fp32",), peers=("published loop",),
                  **where) -> None:
    """A stored result with a row for each precision against each peer."""
    rows = [{"of": "engine", "name": f"{precision}-{peer}", "what": precision, "peer": peer,
             "ours_ms": ours_ms, "ratio": 2.0} for precision in precisions for peer in peers]
    results.store(HERE | {"busy": False} | where, rows, {"datetime": time}, revision="ab")


EPYC = {"cpu": "EPYC", "cpu_flags": ["avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fma"]}
XEON = {"cpu": "Xeon", "cpu_flags": [*EPYC["cpu_flags"], "amx_bf16", "amx_int8", "avx_vnni"]}


def test_the_table_by_class(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    capped = {"cpu_class": "AVX2", "caps": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
    stored_engine("2026-01-01", 1.0, **EPYC, **capped)
    stored_engine("2026-01-02", 2.0, ("fp32", "int8"), ("published loop", "torch.compile fp32"),
                  **EPYC, **capped)
    stored_engine("2026-01-03", 3.0, **EPYC, cpu_class="AVX-512, VNNI, BF16", caps={})
    stored_engine("2026-01-04", 4.0, **XEON, cpu_class="AVX-512, VNNI, BF16",
                  caps={"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"})
    stored_engine("2026-01-05", 5.0, **EPYC)  # of make bench
    stored_engine("2026-01-06", 6.0, **XEON, busy=True)
    stored_engine("2026-01-07", 7.0, **XEON, gpu="H100")
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in report.class_table().splitlines()[3:-1]]
    cap = "EPYC, ONEDNN_MAX_CPU_ISA=AVX2"
    assert lines == [
        ["AVX2", "fp32", "2", "2.00", "2.00", "", "", "", "", cap],
        ["AVX2", "int8", "2", "2.00", "2.00", "", "", "", "", cap],
        ["AVX2, VNNI", *[""] * 8, "not measured"],
        ["AVX-512, VNNI", *[""] * 8, "not measured"],
        ["AVX-512, VNNI, BF16", "fp32", "3", "2.00", *[""] * 5, "EPYC, natively"],
        ["AMX", "fp32", "6", "2.00", *[""] * 5, "Xeon (BUSY), natively"],
        ["arm64, dot product", *[""] * 8, "not measured"]]
    # The first table, and comparisons of commits, are of what make bench stores.
    assert "| whole path: fp32 | 6 | published loop |" in report.page_table()
    assert {run["time"] for run in results.history(HERE | EPYC)} == {"2026-01-05"}


@pytest.mark.parametrize(("flags", "native", "shown"), [
    ("avx2 fma", "AVX2", []),
    ("avx2 fma avx_vnni", "AVX2, VNNI", ["AVX2"]),
    ("avx2 fma avx512f", None, ["AVX2"]),
    ("avx2 fma avx512f avx512_vnni", "AVX-512, VNNI", ["AVX2"]),
    ("avx2 fma avx512f avx512_vnni avx512_bf16 avx_vnni amx_bf16 amx_int8", "AMX",
     ["AVX2", "AVX2, VNNI", "AVX-512, VNNI", "AVX-512, VNNI, BF16"]),
    ("asimd asimddp", "arm64, dot product", []),
    ("sse2", None, [])])
def test_classes_that_a_cpu_shows(flags, native, shown):
    found = classes.native_class(frozenset(flags.split()))
    assert (found and found.name) == native
    caps = classes.shown_classes(frozenset(flags.split()))
    assert [name for name, variables in caps.items() if variables] == shown
    assert [name for name, variables in caps.items() if not variables] == (
        [native] if native else [])
    assert classes.class_of({"cpu_flags": flags.split()}) == native
    assert classes.class_of({"cpu_flags": flags.split(), "cpu_class": "AVX2"}) == "AVX2"
