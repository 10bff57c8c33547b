"""What a build tried and measured, as one HTML page with a plot of score error against latency."""

import html
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from scrd_fast.engine.engine_file import read_engine_file
from scrd_fast.engine.manifest import Manifest
from scrd_fast.errors import BackendUnavailable
from scrd_fast.files import atomic_write
from scrd_fast.metrics.agreement import Report

_FIGURES = ("score_error", "map_error", "rank_correlation", "auroc_change", "flipped")
_STYLE = ("body{font:15px sans-serif;margin:2em;max-width:60em}td,th{padding:.2em .8em;"
          "text-align:right}td:last-child,th:last-child,td:first-child{text-align:left}"
          "tr.chosen{font-weight:bold}tr:nth-child(even){background:#f3f3f3}")


def write_build_report(engine: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Write the page for an engine file; needs matplotlib (`pip install scrd-fast[report]`).

    Raises EngineFileError, OutputError, BackendUnavailable where matplotlib is not installed.
    """
    check_matplotlib()
    text = _page(read_engine_file(engine)[0], str(engine))
    with atomic_write(out) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def check_matplotlib() -> None:
    """Raise BackendUnavailable where it is not installed."""
    if not find_spec("matplotlib"):
        raise BackendUnavailable("report: expected matplotlib, got none; pip install"
                                 " scrd-fast[report]")


@contextmanager
def private_matplotlib(folder: Path) -> Iterator[None]:
    """For the command line: Matplotlib, and fontconfig which it asks for fonts, keep what they find
    out in a folder within `folder` that goes again, not below the user's home."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scrd-", dir=folder) as cache:
        os.environ |= {"MPLCONFIGDIR": cache, "XDG_CACHE_HOME": cache}
        yield


def _page(manifest: Manifest, name: str) -> str:
    fidelity = manifest.fidelity
    limits = ", ".join(f"{k} {v:g}" for k, v in asdict(fidelity.limits).items() if v is not None)
    parts = [f"<h1>{html.escape(name)}</h1>",
             f"<p>{html.escape(manifest.model.backbone)}, {html.escape(manifest.backend)}"
             f" {html.escape(manifest.precision)}; limits: {html.escape(limits)}; probe set:"
             f" {html.escape(fidelity.probe)}, {fidelity.report.images}"
             f" images; built on {html.escape(manifest.machine.cpu)}</p>",
             "<h2>Precisions</h2>",
             _table(("precision", "ms per image", *_FIGURES, "not taken because"),
                    [((row.precision, row.ms, *_figures(row.report), row.why_not or ""),
                      row.precision == manifest.precision) for row in fidelity.candidates])]
    search = fidelity.search
    if search is not None:
        parts += ["<h2>Search for the layers that stay out of int8</h2>",
                  _table(("kept", "ms per image", *_FIGURES, "last kept"),
                         [((len(t.keep), t.ms, *_figures(t.report),
                            t.keep[-1].removeprefix("network/")),
                           t.keep == search.keep) for t in search.tries])]
    parts += ["<h2>Score error against latency</h2>", _plot(manifest)]
    return (f"<!doctype html><meta charset=utf-8><title>{html.escape(name)}</title>"
            f"<style>{_STYLE}</style>" + "\n".join(parts) + "\n")


def _figures(report: Report | None) -> list[float | None]:
    return [None if report is None else getattr(report, name) for name in _FIGURES]


def _table(header: Sequence[str], rows: Iterable[tuple[Sequence[Any], bool]]) -> str:
    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))

    lines = ["<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in header) + "</tr>"]
    for values, chosen in rows:
        lines.append(f"<tr{' class=chosen' if chosen else ''}>"
                     + "".join(f"<td>{cell(v)}</td>" for v in values) + "</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _plot(manifest: Manifest) -> str:
    """The points as SVG."""
    from matplotlib.figure import Figure

    fidelity = manifest.fidelity
    precisions = [(row.ms, row.report.score_error, row.precision)
                  for row in fidelity.candidates if row.ms is not None and row.report is not None]
    tries = [(t.ms, t.report.score_error, str(len(t.keep)))
             for t in (() if fidelity.search is None else fidelity.search.tries)]
    panels = [("precisions that keep the limits", precisions, "log"),
              ("int8, by the number of names kept", tries, "linear")]
    shown = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(4.6 * max(len(shown), 1), 3.8), layout="constrained")
    for i, (title, points, scale) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), i + 1)
        axes.plot(*zip(*[point[:2] for point in points], strict=True), "o")
        for x, y, text in points:
            axes.annotate(text, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=9,
                          parse_math=False)
        axes.set(title=title, xlabel="milliseconds per image", yscale=scale,
                 ylabel="largest relative score error")
        axes.margins(0.18, 0.15)
        axes.grid(alpha=0.3)
    drawn = StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]
