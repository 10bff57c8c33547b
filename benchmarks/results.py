"""Stored results: benchmarks/results/<device>/<date>-<commit>.json, what pytest-benchmark wrote
beside each as <date>-<commit>.raw.json.gz; a further run of that day and commit ends in -2, -3.
Quick runs go into build/quick-results."""

import datetime
import gzip
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.size import QUICK
from scrd_fast.files import atomic_write

MARKS = {True: "kept", False: "MISSED", None: ""}
_HERE = Path(__file__).parent
RESULTS = _HERE.parent / "build" / "quick-results" if QUICK else _HERE / "results"
_SUBJECTS = {"engine": "whole path", "preprocess": "pre-processing", "simplex_noise": "noise",
             "contrastive_loss": "loss and gradient", "training": "training step"}


def figures(raw: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each benchmark of a pytest-benchmark file: the file's subject, its name,
    milliseconds, extra_info."""
    return [{"of": Path(each["fullname"].partition("::")[0]).stem.removeprefix("test_bench_"),
             "name": each["name"],
             **{key: 1e3 * each["stats"][key] for key in ("min", "median", "max")},
             **each["extra_info"]} for each in raw.get("benchmarks", [])]


def kept(figure: dict[str, Any]) -> bool | None:
    """Whether a figure is what was wanted; None where nothing was, or not of such a device."""
    if not figure.get("judged"):
        return None
    relation, _, limit = figure["wanted"].rpartition(" ")
    ratio: float = figure["ratio"]
    return ratio <= float(limit) if relation == "at most" else ratio >= float(limit)


def title(figure: dict[str, Any]) -> str:
    """What was timed, in words."""
    subject = _SUBJECTS.get(figure["of"], figure["of"].replace("_", " "))
    what = figure.get("what") or figure["name"].partition("[")[2].rstrip("]").replace("-", ", ")
    return f"{subject}: {what}" if what else subject


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each figure of which something is wanted, with whether it is so."""
    return "\n".join(
        f"{f'{title(figure)} / ' + figure.get('peer', 'limit'):<70} {figure['ratio']:>8.2f} "
        f" {figure['wanted']:<14} {MARKS[kept(figure)] or 'not judged'}"
        for figure in rows if "wanted" in figure)


def commit() -> str:
    """Of the working tree, with "-changed" where it differs; "unknown" outside of git."""
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=_HERE, capture_output=True,
                              text=True, check=True).stdout.strip()
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def store(
    environment: dict[str, Any], rows: list[dict[str, Any]], raw: dict[str, Any] | None = None, *,
    revision: str | None = None, **more: Any,
) -> Path:
    """Write a result of today; the file's path.

    raw: what pytest-benchmark wrote, which is stored once however often it is given. revision: the
    commit when the run began.
    """
    device = str(environment.get("gpu") or environment["cpu"])
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    revision = revision or commit()
    now = datetime.datetime.now(datetime.UTC)
    time = (raw or {}).get("datetime") or now.isoformat(timespec="seconds")
    name = f"{time[:10]}-{revision}"
    out = next(path for k in itertools.count(1)
               if not (path := folder / f"{name}{f'-{k}' if k > 1 else ''}.json").exists()
               or stored(path).get("time") == time)
    result = {"environment": environment, "commit": revision, "time": time, **more,
              "figures": rows}
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    if raw is not None:  # but for the host's name and kernel, which are nobody's business
        raw = {key: value for key, value in raw.items() if key != "machine_info"}
        with atomic_write(out.with_suffix(".raw.json.gz")) as temporary:
            temporary.write_bytes(gzip.compress(json.dumps(raw).encode(), mtime=0))
    return out


def stored(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    return result


def history(like: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Stored results, oldest first; like: of the same device as this environment, and of the same
    class of CPUs shown."""
    found = [stored(path) for path in RESULTS.glob("*/*.json")]
    return sorted((result for result in found
                   if like is None or all(result["environment"].get(key) == like.get(key)
                                          for key in ("cpu", "gpu", "cores", "cpu_class"))),
                  key=lambda result: str(result.get("time", "")))
