"""Stores a run of the benchmarks and reports on it.

    python -m benchmarks.report RAW.json      stores what `pytest --benchmark-json` wrote; writes
                                              build/benchmarks.html and .md
    python -m benchmarks.report --page        puts the newest tables into docs/benchmarks.md
    python -m benchmarks.report --compare C   says which ratios moved since commit C by more than
                                              the noise between runs of one commit

A figure that is missed is red in the page and MISSED in the tables.
"""

import argparse
import html
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.classes import CLASSES, class_of
from benchmarks.plots import engine_name, svg
from benchmarks.results import MARKS, figures, history, kept, store, stored, table, title
from scrd_fast.files import atomic_write
from scrd_fast.machine import CAP

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: make benchmarks-page -->", "<!-- end of benchmarks -->"
BEGIN_CLASSES, END_CLASSES = "<!-- classes: make benchmarks-page -->", "<!-- end of classes -->"
_STYLE = ("body{font:15px sans-serif;margin:2em;max-width:80em}td,th{padding:.2em .8em;"
          "text-align:right}td:first-child,th:first-child{text-align:left}"
          "tr.missed{color:#b00;font-weight:bold}tr:nth-child(even){background:#f3f3f3}")
HEADER = ("what", "ours, ms", "against", "ms", "times as fast", "wanted", "of the limit")
# Of the table by class: how a peer's name begins, in any precision.
PEERS = ("published loop", "torch.compile", "onnxruntime", "plain OpenVINO", "anomalib OpenVINO")
CLASS_HEADER = ("class of CPU", "engine", "ms", *PEERS, "of the limit", "CPU, and how it was shown")
OTHER_MODEL = " (another network and border rule)"

Row = tuple[Sequence[str], bool | None]  # cells, and whether what was wanted is kept
Table = tuple[Sequence[str], list[Row]]  # header and rows


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def comparisons(result: dict[str, Any], *, short: bool = False) -> Table:
    """Ours against peers and limits; short: only what is wanted, and the whole path, and nothing
    against our own reference."""
    rows: list[Row] = []
    for figure in result["figures"]:
        if "ratio" not in figure or (short and (
                figure.get("peer") == "reference"
                or ("wanted" not in figure and figure["of"] != "engine"))):
            continue
        spread, limit = figure.get("ratio_min_max"), figure.get("limit")
        ratio = f"{figure['ratio']:.2f}" + (
            f" ({spread[0]:.2f} to {spread[1]:.2f})" if spread else "")
        peer = figure.get("peer", "") + (OTHER_MODEL if figure.get("other_model") else "")
        share = f"{limit['share']:.0%}, {limit['by']}" if limit else ""
        rows.append(((title(figure), _text(figure.get("ours_ms")), peer,
                      _text(figure.get("peer_ms")), ratio, figure.get("wanted", ""), share),
                     kept(figure)))
    return HEADER, rows


def whole_paths(result: dict[str, Any]) -> Iterator[Table]:
    """Batches, start-up and arrival at random of every engine."""
    found = [figure["whole_path"] for figure in result["figures"] if "whole_path" in figure]
    if not found:
        return
    yield ("engine", "batch", "p50, ms", "p90, ms", "p99, ms", "images/s", "of the limit"), [
        ((engine_name(f["engine"]), str(row["batch"]), *(_text(row[f"p{p}_ms"])
                                                         for p in (50, 90, 99)),
          _text(row["images_per_s"]),
          "" if row["share_of_limit"] is None else f"{row['share_of_limit']:.0%}"), None)
        for f in found for row in f["batches"]]
    yield ("engine", "loaded after, s", "first score after, s", "memory at most, MiB"), [
        ((engine_name(f["engine"]), f"{f['start']['load_s']:.1f}",
          f"{f['start']['first_score_s']:.1f}", f"{f['start']['peak_memory_mib']:.0f}"), None)
        for f in found]
    yield ("engine, images that arrive at random", "load", "p50, ms", "p90, ms", "p99, ms"), [
        ((engine_name(f["engine"]), f"{row['load']:.0%}",
          *(_text(row[f"p{p}_ms"]) for p in (50, 90, 99))), None)
        for f in found for row in f["loads"]]


def scaling(result: dict[str, Any]) -> Iterator[Table]:
    rows: list[Row] = [
        ((row["mode"], str(row["batch"]), str(row["threads"]), _text(row["images_per_s"])), None)
        for figure in result["figures"] for row in figure.get("scaling", [])]
    if rows:
        yield ("mode, best precision", "batch", "threads", "images/s"), rows


def _where(result: dict[str, Any]) -> str:
    here = result["environment"]
    return (f"{here.get('gpu') or here['cpu']}, {here['cores']} cores, {here['threads']} threads,"
            f" load average {here['load_average']:.1f} before the run"
            + (" (BUSY)" if here["busy"] else "") + f", PyTorch {here['torch']}, commit"
            f" {result['commit']}")


def _markdown(made: Table) -> str:
    header, rows = made
    marked = any(kept is not None for _, kept in rows)
    lines = [f"| {' | '.join([*header, ''] if marked else header)} |",
             "|---" * (len(header) + marked) + "|"]
    for cells, good in rows:
        mark = [f"**{MARKS[good]}**" if good is False else MARKS[good]] if marked else []
        lines.append(f"| {' | '.join([*cells, *mark])} |")
    return "\n".join(lines) + "\n"


def markdown(result: dict[str, Any]) -> str:
    """All tables of a result."""
    tables = [comparisons(result), *whole_paths(result), *scaling(result)]
    return "\n".join([*map(_markdown, tables), _where(result)]) + "\n"


def _html(made: Table) -> str:
    header, rows = made
    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    lines += [f"<tr{' class=missed' if good is False else ''}>"
              + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
              for cells, good in rows]
    return "<table>" + "\n".join(lines) + "</table>"


def web_page(raw: dict[str, Any], result: dict[str, Any]) -> str:
    """The report as HTML."""
    past = result | {"history": history(result["environment"])}
    more = "\n<p>".join(map(_html, [*whole_paths(result), *scaling(result)]))
    return (f"<!doctype html><meta charset=utf-8><title>scrd_fast benchmarks</title><style>{_STYLE}"
            f"</style><h1>scrd_fast benchmarks</h1><p>{html.escape(_where(result))}</p>\n"
            f"{_html(comparisons(result))}\n{svg(raw, past)}\n{more}\n")


def _of_cpus() -> list[dict[str, Any]]:
    return [result for result in history() if "gpu" not in result["environment"]]


def page_table() -> str:
    """The newest stored result of a CPU, between the lines that mark it in the page."""
    whole = [result for result in _of_cpus() if "cpu_class" not in result["environment"]]
    if not whole:
        raise SystemExit("benchmarks/results: expected a stored result of a CPU, got none; run make"
                         " bench")
    newest = whole[-1]
    return f"{BEGIN}\n{_markdown(comparisons(newest, short=True))}\n{_where(newest)}\n{END}"


def _precision_rows(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Precision of the engine -> peer -> the figure of the two, of results that name both."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for precision in ("fp32", "bf16", "int8"):
        against = {figure["peer"]: figure for figure in result["figures"]
                   if figure["of"] == "engine" and figure.get("what") == precision}
        if PEERS[0] in against:
            found[precision] = against
    return found


def _of_class(name: str) -> dict[str, Any] | None:
    """The newest stored result of a class: natively before a stand-in, and one of `make
    bench-classes` before one of `make bench`, which compares less."""
    found = [result for result in _of_cpus()
             if class_of(result["environment"]) == name and _precision_rows(result)]
    return max(found, default=None, key=lambda result: (
        not result["environment"].get("caps"), "cpu_class" in result["environment"],
        result["time"]))


def _class_rows(name: str, result: dict[str, Any]) -> Iterator[Row]:
    """A row per precision of the engine; empty cells where nothing was measured."""
    here = result["environment"]
    cap = here.get("caps", {}).get(CAP)
    how = f"{here['cpu']}{' (BUSY)' if here['busy'] else ''}, " + (
        f"{CAP}={cap}" if cap else "natively")
    for precision, against in _precision_rows(result).items():
        ratios = [next((f"{figure['ratio']:.2f}" for peer, figure in against.items()
                        if peer.startswith(column)), "") for column in PEERS]
        loop = against[PEERS[0]]
        limit = f"{loop['limit']['share']:.0%}, {loop['limit']['by']}" if "limit" in loop else ""
        yield (name, precision, _text(loop["ours_ms"]), *ratios, limit, how), None


def class_table() -> str:
    """The newest stored results of each class of CPUs, between the lines that mark it."""
    rows: list[Row] = []
    for each in CLASSES:
        result = _of_class(each.name)
        rows += [((each.name, *[""] * (len(CLASS_HEADER) - 2), "not measured"), None)
                 ] if result is None else _class_rows(each.name, result)
    return f"{BEGIN_CLASSES}\n{_markdown((CLASS_HEADER, rows))}{END_CLASSES}"


def with_tables(page: str) -> str:
    """docs/benchmarks.md with the newest tables."""
    for begin, end, text in ((BEGIN, END, page_table()),
                             (BEGIN_CLASSES, END_CLASSES, class_table())):
        page = page[: page.index(begin)] + text + page[page.index(end) + len(end) :]
    return page


def _values(runs: list[dict[str, Any]], what: str) -> dict[tuple[str, str], list[float]]:
    """Subject and name of a benchmark -> its values of that name in these runs."""
    found: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        for figure in run["figures"]:
            if what in figure:
                found.setdefault((figure["of"], figure["name"]), []).append(figure[what])
    return found


def noise(runs: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By how much the largest ratio exceeds the smallest between runs of one commit (A/A), the
    most over all commits that were run more than once."""
    most: dict[tuple[str, str], float] = {}
    for commit in {run["commit"] for run in runs}:
        same = [run for run in runs if run["commit"] == commit]
        for key, ratios in _values(same, "ratio").items():
            if len(ratios) > 1:
                most[key] = max(most.get(key, 0.0), max(ratios) / min(ratios) - 1)
    return most


def compare(base: str, other: str, runs: list[dict[str, Any]]) -> list[str]:
    """A line for each ratio that moved between two commits by more than the noise, and which of the
    two times it is made of moved; of those that no commit tells the noise of, one that says so."""
    both = [[run for run in runs if run["commit"] == commit] for commit in (base, other)]
    before, after = (_values(each, "ratio") for each in both)
    times = {name: [_values(each, name) for each in both] for name in ("ours_ms", "peer_ms")}

    def moved(key: tuple[str, str]) -> str:
        """Of a ratio of two times, both, as they were and are."""
        return "".join(
            f"; {name[:-3]} {np.median(old[key]):.3g} -> {np.median(new[key]):.3g} ms"
            for name, (old, new) in times.items() if key in old and key in new)

    known, lines, unknown = noise(runs), [], []
    for key in before.keys() & after.keys():
        old, new = float(np.median(before[key])), float(np.median(after[key]))
        if key not in known:
            unknown.append(": ".join(key))
        elif max(old / new, new / old) > 1 + known[key]:
            lines.append(f"{': '.join(key)}: {old:.3g} -> {new:.3g} ({new / old - 1:+.1%}, noise"
                         f" {known[key]:.1%}){moved(key)}")
    if unknown:
        lines.append(f"noise unknown of {len(unknown)} figures, which no commit was run twice for"
                     f" on this machine (run make bench again): {', '.join(sorted(unknown))}")
    return sorted(lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("raw", nargs="?", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--compare", metavar="COMMIT")
    arguments = parser.parse_args()
    if arguments.compare:
        base = [run for run in history() if run["commit"] == arguments.compare]
        if not base:
            known = sorted({run["commit"] for run in history()})
            parser.error(f"--compare: expected a stored commit of {known}, got"
                         f" {arguments.compare!r}")
        kinds = {run["environment"].get("cpu_class", ""): run for run in base}
        for kind, run in sorted(kinds.items()):
            runs = history(run["environment"])
            newest = runs[-1]["commit"]
            print(f"{arguments.compare} -> {newest} {kind}".rstrip())
            print("\n".join(compare(arguments.compare, newest, runs))
                  or "no ratio moved by more than the noise")
    elif arguments.page:
        _write(PAGE, with_tables(PAGE.read_text()))
    elif arguments.raw:
        raw = json.loads(arguments.raw.read_text())
        begun = raw["scrd_fast"]
        out = store(begun["environment"], figures(raw), raw, revision=begun["commit"])
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
