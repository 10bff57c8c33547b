"""Scoring images, and what scores mean."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import PatientFrom, Quiet, Seed, Trust, app, example
from scrd_fast.progress import show_progress


@app.command(epilog=example("scrd-fast score model.scrd images/ --out scores.csv"))
def score(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    images: Annotated[list[Path], typer.Argument(
        help="Files (pictures, DICOM, NIfTI), folders of such, or data sets, whose masks are left"
             " out.")],
    out: Annotated[Path | None, typer.Option(help="CSV file instead of standard output.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for heat-map PNGs.")] = None,
    maps: Annotated[Path | None, typer.Option(
        help="Folder for the anomaly maps, a file for each file or DICOM series.")] = None,
    maps_format: Annotated[str, typer.Option(
        help="nifti (on the grid of a NIfTI or DICOM source), npz or tiff.")] = "nifti",
    failed: Annotated[Path | None, typer.Option(
        help="CSV file of what could not be scored; failed.csv beside --out by default.")] = None,
    trust: Trust = False,
) -> None:
    """Score images; unreadable ones are named, the rest is scored (exit code 1 then)."""
    from scrd_fast.data.to_score import find_to_score
    from scrd_fast.engine.load import load_engine
    from scrd_fast.errors import expect
    from scrd_fast.files import check_writable
    from scrd_fast.outputs.maps import collect_maps
    from scrd_fast.report.scores import check_failed, score_files, write_failed

    found = find_to_score(images)
    if failed is None and out is not None:
        failed = out.with_name("failed.csv")
    read = [engine, *found.paths, *found.refused]
    if out is not None:
        check_writable(out, "--out", inputs=read)
    if failed is not None:
        expect(out is None or os.path.realpath(failed) != os.path.realpath(out), "--failed",
               "another file than --out", failed)
        check_writable(failed, "--failed", inputs=read)
        check_failed(failed)
    if overlays is not None:
        check_writable(overlays, "--overlays", folder=True)
    without: dict[Path, str] = {}  # files without a map, and why
    with show_progress("loading") as step, ExitStack() as stack:
        each = None
        if maps is not None:
            check_writable(maps, "--maps", folder=True)
            each = stack.enter_context(collect_maps(maps, maps_format, found.paths, without))
        loaded = load_engine(engine, trust=trust)
        reasons = score_files(loaded, found.paths, out=out, overlays=overlays,
                              refused=found.refused, each=each, progress=step)
    for message in without.values():
        typer.echo(f"warning: {message}", err=True)
    for message in reasons.values():
        typer.echo(f"not scored: {message}", err=True)
    if failed is not None:
        write_failed(reasons, failed)
    if reasons:
        raise typer.Exit(1)


@app.command(epilog=example(
    "scrd-fast calibrate model.scrd held-out-normals/ --fpr 0.01",
    "scrd-fast calibrate model.scrd held-out-normals/ --anomalous sick/ --rule sensitivity"
    " --target 0.95"))
def calibrate(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd), which keeps the result.")],
    normals: Annotated[Path, typer.Argument(
        help="Folder of normal images not trained on, or a data set with validation images.")],
    fpr: Annotated[float | None, typer.Option(
        help="Largest share of normal images that may be called anomalous; 0.01 by default. Needs"
             " 1/fpr - 1 images.")] = None,
    anomalous: Annotated[Path | None, typer.Option(
        help="Folder of images with anomalies, or a data set that says which have some; --rule"
             " chooses the threshold then.")] = None,
    rule: Annotated[str | None, typer.Option(
        help="With --anomalous: f1 (the default), sensitivity or specificity.")] = None,
    target: Annotated[float | None, typer.Option(
        help="The sensitivity or specificity to reach.")] = None,
    patient_from: PatientFrom = None,
    seed: Seed = 0,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Learn from held-out images which scores are anomalous; nothing is built again."""
    from scrd_fast.evaluation.calibrate import calibrate as run

    with show_progress("loading", enabled=not quiet) as shown:
        decisions = run(engine, str(normals), fpr=fpr, rule=rule, target=target, seed=seed,
                        anomalous=None if anomalous is None else str(anomalous), trust=trust,
                        patient_from=patient_from, progress=shown)
    typer.echo(f"{engine}: anomalous above {decisions.threshold:.6g} ({decisions.rule}"
               f"{'' if decisions.target is None else f' {decisions.target:g}'}),"
               f" from {len(decisions.normal_scores)} normal images")
    for name, value in decisions.report.items():
        if isinstance(value, Mapping):
            typer.echo(f"  on {value['normal']} normal and {value['anomalous']} anomalous {name}"
                       " that did not choose it")
        else:
            typer.echo(f"  {name:<12} {value[0]:.3f}  (95 %: {value[1]:.3f} to {value[2]:.3f})")


@app.command(epilog=example("scrd-fast monitor model.scrd images-of-last-week/"))
def monitor(
    engine: Annotated[Path, typer.Argument(help="Calibrated engine file (.scrd).")],
    images: Annotated[Path, typer.Argument(help="Folder of recent images.")],
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm.")] = 0.01,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Do recent images still look like the calibration's normal ones? Exit code 1 where not."""
    from scrd_fast.evaluation.calibrate import monitor as run

    with show_progress("loading", enabled=not quiet) as shown:
        found = run(engine, str(images), alpha=alpha, trust=trust, progress=shown)
    for name, p in found.p_values.items():
        typer.echo(f"  {name:<15} p = {p:.3g}{'  differs' if name in found.drifted else ''}")
    typer.echo(f"{found.images} images: " + (
        f"{', '.join(found.drifted)}: not as at calibration (p below {found.level:.2g})"
        if found.drifted else f"no drift (no p below {found.level:.2g})"))
    if found.drifted:
        raise typer.Exit(1)
