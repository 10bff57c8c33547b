"""Stores a run of the benchmarks and reports on it.

    python -m benchmarks.report RAW.json      stores what `pytest --benchmark-json` wrote; writes
                                              build/benchmarks.html and .md
    python -m benchmarks.report --readme      puts the newest result's table into README.md
    python -m benchmarks.report --compare C   says which ratios moved since the result of commit C
                                              by more than their spread within a run

A figure that is missed is red in the page and MISSED in the tables.
"""

import argparse
import datetime
import html
import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import figures, history, kept, store, stored, table, title
from scrd_fast.engine.bench import environment
from scrd_fast.files import atomic_write

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks: make readme-table -->", "<!-- end of benchmarks -->"
_STYLE = ("body{font:15px sans-serif;margin:2em;max-width:70em}td,th{padding:.2em .8em;"
          "text-align:right}td:first-child,th:first-child{text-align:left}"
          "tr.missed{color:#b00;font-weight:bold}tr:nth-child(even){background:#f3f3f3}")


def _times(figure: dict[str, Any]) -> tuple[float | None, float | None]:
    """Milliseconds of ours and of the peer, where a benchmark tells them."""
    if "ours_s" in figure:
        return figure["ours_s"] * 1e3, figure["published_s"] * 1e3
    return figure.get("engine_ms"), figure.get("peer_ms", figure.get("limit_ms"))


def _rows(result: dict[str, Any]) -> list[tuple[str, str, str, str, str, bool | None]]:
    """What, ours, theirs, ratio, wanted, and whether it is kept, of figures with a ratio."""
    def text(ms: float | None) -> str:
        return "" if ms is None else f"{ms:.4g}"

    rows = []
    for figure in result["figures"]:
        if "ratio" in figure:
            ours, theirs = _times(figure)
            spread = figure.get("ratio_min_max")
            ratio = f"{figure['ratio']:.2f}" + (
                f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else "")
            rows.append((title(figure), text(ours), text(theirs), ratio,
                         figure.get("wanted", ""), kept(figure)))
    return rows


def _where(result: dict[str, Any]) -> str:
    here = result["environment"]
    return (f"{here.get('gpu') or here['cpu']}, {here['cores']} cores, {here['threads']} threads,"
            f" load average {here['load_average']:.1f} before the run"
            + (" (BUSY)" if here["busy"] else "") + f", PyTorch {here['torch']}, commit"
            f" {result['commit']}")


def markdown(result: dict[str, Any]) -> str:
    """The table of a result."""
    lines = ["| benchmark | ours, ms | peer or limit, ms | ratio | wanted | |",
             "|---|---|---|---|---|---|"]
    marks = {True: "kept", False: "**MISSED**", None: ""}
    lines += [f"| {' | '.join(row[:5])} | {marks[row[5]]} |" for row in _rows(result)]
    return "\n".join([*lines, "", _where(result)]) + "\n"


def _plots(raw: dict[str, Any], result: dict[str, Any]) -> str:
    """Histogram of the engines' latencies, roofline, and the ratios over stored commits, as SVG."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(13, 4.2), layout="constrained")
    latencies, roofline, past = page.subplots(1, 3)
    times: dict[str, list[float]] = {}
    for each in raw["benchmarks"]:
        name, _, precision = each["name"].rstrip("]").partition("[")
        if name in ("test_engine_against_published_loop", "test_engine_against_plain_openvino"):
            times.setdefault(precision, []).extend(t * 1e3 for t in each["stats"]["data"])
    everything = [t for of_one in times.values() for t in of_one] or [1.0]
    bins = np.geomspace(min(everything) * 0.99, max(everything) * 1.01, 60)
    for precision, of_one in times.items():
        latencies.hist(of_one, bins=bins, alpha=0.6, label=precision)
    latencies.set(title="latency, batch 1", xlabel="milliseconds", ylabel="calls", xscale="log")
    latencies.legend()
    for figure in result["figures"]:
        if "rates" in figure:
            precision = figure["name"].partition("[")[2].rstrip("]")
            peak, copy = figure["rates"][precision], figure["rates"]["copy"]
            done, nbytes = sum(figure["operations"].values()), figure["weight_bytes"]
            reached = done / figure["engine_ms"] * 1e3
            intensity = np.geomspace(1, 1e4, 50)
            (line,) = roofline.loglog(intensity, np.minimum(peak, intensity * copy) / 1e9)
            roofline.plot(done / nbytes, reached / 1e9, "o", color=line.get_color(),
                          label=f"{precision}: {reached / 1e9:.0f} of {peak / 1e9:.0f}")
    roofline.set(title="roofline, weights read once", xlabel="operations per byte", ylabel="G/s")
    roofline.legend()
    stored_results = [stored(path) for path in history(result["environment"])]
    for name in sorted({f["name"] for f in result["figures"] if "wanted" in f and "engine" in
                        f["name"]}):
        points = [(r["commit"], f["ratio"]) for r in stored_results for f in r["figures"]
                  if f["name"] == name and "ratio" in f]
        past.plot([p[0] for p in points], [p[1] for p in points], "o-", markersize=4,
                  label=name.removeprefix("test_engine_against_").replace("_", " "))
    past.set(title="ratios over commits", ylabel="ratio")
    past.margins(y=0.35)
    past.legend(fontsize=7, ncols=2)
    text = StringIO()
    page.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg"):]


def web_page(raw: dict[str, Any], result: dict[str, Any]) -> str:
    """The report as HTML."""
    header = ("benchmark", "ours, ms", "peer or limit, ms", "ratio", "wanted")
    lines = ["<tr>" + "".join(f"<th>{h}</th>" for h in header) + "</tr>"]
    for row in _rows(result):
        lines.append(f"<tr{' class=missed' if row[5] is False else ''}>"
                     + "".join(f"<td>{html.escape(v)}</td>" for v in row[:5]) + "</tr>")
    return (f"<!doctype html><meta charset=utf-8><title>scrd_fast benchmarks</title><style>{_STYLE}"
            f"</style><h1>scrd_fast benchmarks</h1><p>{html.escape(_where(result))}</p>\n<table>"
            + "\n".join(lines) + "</table>\n" + _plots(raw, result) + "\n")


def readme_table() -> str:
    """The newest stored result's table, between the lines that mark it in README.md."""
    of_cpus = [path for path in history() if "gpu" not in stored(path)["environment"]]
    if not of_cpus:
        raise SystemExit("benchmarks/results: expected a stored result of a CPU, got none; run make"
                         " bench")
    return f"{BEGIN}\n{markdown(stored(of_cpus[-1]))}{END}"


def with_table(readme: str) -> str:
    """README.md with the newest table."""
    begin, end = readme.index(BEGIN), readme.index(END) + len(END)
    return readme[:begin] + readme_table() + readme[end:]


def compare(base: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """A line for each ratio whose spreads in the two results do not overlap."""
    before = {f["name"]: f for f in base["figures"] if "ratio_min_max" in f}
    lines = []
    for figure in other["figures"]:
        old = before.get(figure["name"])
        if old is None or "ratio_min_max" not in figure:
            continue
        (low, high), (old_low, old_high) = figure["ratio_min_max"], old["ratio_min_max"]
        if low > old_high or high < old_low:
            lines.append(f"{figure['name']}: {old['ratio']:.2f} ({old_low:.2f} to {old_high:.2f})"
                         f" -> {figure['ratio']:.2f} ({low:.2f} to {high:.2f})")
    return lines


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", nargs="?", type=Path)
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--compare", metavar="COMMIT")
    arguments = parser.parse_args()
    if arguments.compare:
        base = [path for path in history() if stored(path)["commit"] == arguments.compare]
        if not base:
            known = [stored(path)["commit"] for path in history()]
            parser.error(f"--compare: expected a stored commit of {known}, got"
                         f" {arguments.compare!r}")
        newest = history(stored(base[-1])["environment"])[-1]
        moved = compare(stored(base[-1]), stored(newest))
        print(f"{base[-1].stem} -> {newest.stem}")
        print("\n".join(moved) or "no ratio moved by more than its spread")
    elif arguments.readme:
        _write(README, with_table(README.read_text()))
    elif arguments.raw:
        raw = json.loads(arguments.raw.read_text())
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        here = raw.get("scrd_fast") or environment()
        out = store(here, figures(raw), raw, time=now)
        result = stored(out)
        _write(ROOT / "build" / "benchmarks.md", markdown(result))
        _write(ROOT / "build" / "benchmarks.html", web_page(raw, result))
        print(f"{table(result['figures'])}\n{out}\nbuild/benchmarks.html, build/benchmarks.md")
    else:
        parser.print_usage()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
