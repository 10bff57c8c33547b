"""An evaluation as tables: for the terminal, as CSV, JSON and a row of Markdown."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from scrd_fast.engine.stream import Scored
from scrd_fast.evaluation.evaluate import OPTIMISTIC, Evaluation, Figure, Judged
from scrd_fast.files import atomic_write
from scrd_fast.report.rows import ScoreRow, make_row, shorten
from scrd_fast.report.run_folder import EVALUATION
from scrd_fast.report.scores import write_failed
from scrd_fast.report.tables import Row, write_table

#: What is not called as it is; of all other figures "_" is a space.
FIGURE_NAMES = {"auroc": "AUROC", "f1": "F1", "aupro": "AUPRO (false positives up to 0.3)",
                "best_f1": "best F1", "best_dice": "best Dice",
                "auroc_synthesised": "AUROC, anomalies synthesised"}
_COLUMNS = ("auroc", "average_precision", "f1", "accuracy", "sensitivity", "specificity",
            "best_f1", "best_accuracy")


def name_figure(name: str, specificity: float) -> str:
    """A figure's name for a reader. specificity: of sensitivity_at_specificity."""
    plain = FIGURE_NAMES.get(name, name.replace("_", " "))
    if name == "sensitivity_at_specificity":
        plain += f" {specificity:g}"
    return f"{plain}, chosen on the test set: optimistic" if name in OPTIMISTIC else plain


def list_lines(evaluation: Evaluation) -> Iterator[str]:
    """What the terminal shows, line by line."""
    yield f"figures, with intervals of 95 % by patient drawn from seed {evaluation.seed}"
    for part in evaluation.parts:
        group = "" if part.group is None else f", group {part.group}"
        of = "patients" if part.level == "patient" else "images"
        rule = f" ({evaluation.patient_rule} of their images)" if part.level == "patient" else ""
        yield (f"{part.normal} normal and {part.anomalous} anomalous {of}{rule}{group},"
               f" {part.patients} patients or files:")
        for name, figure in part.figures.items():
            yield f"  {show_figure(figure):<25}  {name_figure(name, evaluation.specificity)}"
    if evaluation.pixels is not None:
        yield "pixels of the images whose masks are known:"
        for name, figure in evaluation.pixels.items():
            yield f"  {show_figure(figure):<25}  {name_figure(name, evaluation.specificity)}"
    if evaluation.p_values is not None:
        yield "calibration, share of normal images with a p-value of at most:"
        for rate, share in evaluation.p_values.items():
            yield f"  {rate:<6} {share:.3f}"
    chosen = evaluation.threshold
    yield ("no threshold: neither labelled validation images nor a calibration" if chosen is None
           else f"threshold {chosen.value:.6g}, from the {chosen.source}")
    for remark in evaluation.remarks:
        yield f"note: {remark}"


def show_figure(figure: Figure, digits: int = 4) -> str:
    """The value with its interval, where it has one."""
    value, found = f"{figure.value:.{digits}f}", figure.interval
    return value if found is None else (
        f"{value} ({found.low:.{digits}f} to {found.high:.{digits}f})")


def make_markdown(evaluation: Evaluation) -> str:
    """A header and a row of all images: values and their intervals."""
    part = evaluation.parts[0]
    names = [name for name in _COLUMNS if name in part.figures]
    cells = [(name, part.figures[name]) for name in names]
    if evaluation.pixels is not None:
        cells += [(f"pixel {name}", evaluation.pixels[name]) for name in ("auroc", "aupro")]
    titles = ["engine", "data", *(
        title + (" (optimistic)" if title in OPTIMISTIC else "") for title, _ in cells)]
    names_of_files = [path.name.replace("|", r"\|") for path in (
        evaluation.engine, evaluation.data)]
    values = [*names_of_files, *(show_figure(figure) for _, figure in cells)]
    return "\n".join(f"| {' | '.join(each)} |" for each in (
        [title.replace("_", " ") for title in titles], ["---"] * len(titles), values)) + "\n"


def list_figures(evaluation: Evaluation) -> Iterator[Row]:
    """A row per figure, with a header."""
    yield ("level", "group", "normal", "anomalous", "patients", "figure", "value", "low", "high",
           "optimistic")
    for part in evaluation.parts:
        for name, figure in part.figures.items():
            yield (part.level, part.group or "", part.normal, part.anomalous, part.patients,
                   *_cells(name, figure))
    for name, figure in (evaluation.pixels or {}).items():
        yield ("pixel", "", "", "", "", *_cells(name, figure))


def _cells(name: str, figure: Figure) -> Row:
    low, high = ("", "") if figure.interval is None else (
        repr(figure.interval.low), repr(figure.interval.high))
    return (name, repr(figure.value), low, high, int(name in OPTIMISTIC))


def make_judged_row(judged: Judged, item: Scored) -> ScoreRow:
    """The row of a test image; whom it is of only where that is a patient, and not what stands for
    one that nothing tells."""
    source = item.source
    assert source is not None
    stand_ins = (source.study, source.series, str(source.path))
    known = judged.patient is not None and judged.patient not in stand_ins
    return make_row(item, patient=judged.patient if known else None, label=judged.label,
                    group=judged.group)


def list_images(evaluation: Evaluation) -> Iterator[Row]:
    """A row per test image, with a header."""
    calibrated = evaluation.p_values is not None
    yield ("image", "frame", "label", "group", "score", *(["p_value"] if calibrated else []))
    for each in evaluation.images:
        yield (str(each.path), "" if each.frame is None else each.frame, each.label,
               each.group or "", shorten(each.score),
               *([] if each.p_value is None else [shorten(each.p_value)]))


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """evaluation.json, figures.csv, images.csv, row.md and, where files failed, failed.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / EVALUATION) as temporary:
        temporary.write_text(json.dumps(evaluation.to_dict(), indent=1) + "\n")
    write_table(list_figures(evaluation), folder / "figures.csv")
    write_table(list_images(evaluation), folder / "images.csv")
    with atomic_write(folder / "row.md") as temporary:
        temporary.write_bytes(os.fsencode(make_markdown(evaluation)))
    write_failed(evaluation.failed, folder / "failed.csv")
