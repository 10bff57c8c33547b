"""The pictures of a report."""

from collections.abc import Callable
from io import StringIO
from typing import Any

import numpy as np

from benchmarks.results import title
from scrd_fast.model.backbones import describe_network


def _latencies(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    times: dict[str, list[float]] = {}
    for each in raw["benchmarks"]:
        name, _, precision = each["name"].rstrip("]").partition("[")
        if name in ("test_engine_against_published_loop", "test_engine_against_plain_openvino"):
            times.setdefault(precision, []).extend(t * 1e3 for t in each["stats"]["data"])
    everything = [t for of_one in times.values() for t in of_one] or [1.0]
    bins = np.geomspace(min(everything) * 0.99, max(everything) * 1.01, 60)
    for precision, of_one in times.items():
        axes.hist(of_one, bins=bins, alpha=0.6, label=precision)
    axes.set(title="latency, batch 1", xlabel="milliseconds", ylabel="calls", xscale="log")
    # Numbers as they are: powers of ten, a tick each, would overlap.
    typical = [np.median(of_one) for of_one in times.values()]
    axes.set_xticks(typical, [f"{t:.3g}" for t in typical])
    axes.set_xticks([], minor=True)


def _roofline(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    for figure in result["figures"]:
        if "rates" in figure:
            precision = figure["name"].partition("[")[2].rstrip("]")
            peak, copy = figure["rates"][precision], figure["rates"]["copy"]
            done, nbytes = sum(figure["operations"].values()), figure["weight_bytes"]
            reached = done / figure["ours_ms"] * 1e3
            intensity = np.geomspace(1, 1e4, 50)
            (line,) = axes.loglog(intensity, np.minimum(peak, intensity * copy) / 1e9)
            axes.plot(done / nbytes, reached / 1e9, "o", color=line.get_color(),
                      label=f"{precision}: {reached / 1e9:.0f} of {peak / 1e9:.0f}")
    axes.set(title="roofline, weights read once", xlabel="operations per byte", ylabel="G/s")


def _shares(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    rows: dict[str, float] = {}
    for figure in result["figures"]:
        if "limit" in figure:  # what is timed against several peers counts once
            rows.setdefault(title(figure), figure["limit"]["share"])
    axes.barh(list(rows), list(rows.values()))
    axes.set(title="share of the limit that binds", xlim=(0, 1))
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()


def _past(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    for figure in result["figures"]:
        if "wanted" in figure and figure["of"] in ("engine", "training"):
            points = [(r["commit"], f["ratio"]) for r in result["history"] for f in r["figures"]
                      if f["name"] == figure["name"] and f["of"] == figure["of"] and "ratio" in f]
            axes.plot([p[0] for p in points], [p[1] for p in points], "o-", markersize=4,
                      label=f"{title(figure)} / {figure.get('peer', 'limit')}")
    axes.set(title="ratios over commits", ylabel="ratio", yscale="log")


def _scaling(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for figure in result["figures"]:
        for row in figure.get("scaling", []):
            lines.setdefault(f"{row['mode']}, batches of {row['batch']}", []).append(
                (row["threads"], row["images_per_s"]))
    for label, points in lines.items():
        threads, rates = zip(*points, strict=True)
        axes.plot(threads, rates, "o-", label=label)
        axes.set_xticks(threads)
    axes.set(title="throughput, best precision", xlabel="threads", ylabel="images/s")
    axes.set_ylim(bottom=0)


def _under_load(axes: Any, raw: dict[str, Any], result: dict[str, Any]) -> None:
    for figure in result["figures"]:
        if found := figure.get("whole_path"):
            rows = found["loads"]
            axes.plot([100 * row["load"] for row in rows], [row["p99_ms"] for row in rows], "o-",
                      label=engine_name(found["engine"]))
    axes.set(title="p99 of images that arrive at random", xlabel="load, % of capacity",
             ylabel="milliseconds", yscale="log")


def engine_name(engine: dict[str, Any]) -> str:
    network = describe_network(engine["backbone"], engine.get("student", "full"))
    return (f"{network} {engine['input_size']} px, {engine['backend']}"
            f" {engine['precision']}")


_ALL: tuple[Callable[[Any, dict[str, Any], dict[str, Any]], None], ...] = (
    _latencies, _roofline, _shares, _past, _scaling, _under_load)


def svg(raw: dict[str, Any], result: dict[str, Any]) -> str:
    """All pictures of a result, with its "history" in it, as one SVG."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(13, 11.5), layout="constrained")
    for axes, draw in zip(page.subplots(2, 3).flat, _ALL, strict=True):
        draw(axes, raw, result)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.14))
    text = StringIO()
    page.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg"):]
