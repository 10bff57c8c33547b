"""Scoring images, and what scores mean."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scrd_fast.cli.app import (
    Json,
    PatientFrom,
    Quiet,
    Seed,
    Trust,
    Verbose,
    app,
    describe_engine,
    example,
)
from scrd_fast.progress import Progress, show_progress

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine
    from scrd_fast.engine.stream import Scored
    from scrd_fast.errors import ScrdError
    from scrd_fast.report.scores import Take

OBJECTS = "pm,seg,sc,sr"  # all that there are


@app.command(epilog=example("scrd-fast score model.scrd images/ --out scores.csv"))
def score(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    images: Annotated[list[Path], typer.Argument(
        help="Files (pictures, DICOM, NIfTI), folders of such, or data sets, whose masks are left"
             " out.")],
    out: Annotated[Path | None, typer.Option(
        help="CSV, Parquet (.parquet) or JSON lines (.jsonl) file instead of standard output."),
    ] = None,
    as_json: Json = False,
    overlays: Annotated[Path | None, typer.Option(help="Folder for heat-map PNGs.")] = None,
    own_scale: Annotated[bool, typer.Option(
        "--own-scale", help="Each overlay on colours of its own range instead of the calibration's,"
                            " which are the same for all.")] = False,
    maps: Annotated[Path | None, typer.Option(
        help="Folder for the anomaly maps, a file for each file or DICOM series.")] = None,
    maps_format: Annotated[str, typer.Option(
        help="nifti (on the grid of a NIfTI or DICOM source), npz or tiff.")] = "nifti",
    dicom: Annotated[Path | None, typer.Option(
        help="Folder for results as DICOM objects of the sources' own studies.")] = None,
    objects: Annotated[str, typer.Option(
        help="With --dicom: pm (parametric map), seg (segmentations), sc (secondary captures) and"
             " sr (structured report), with commas between.")] = OBJECTS,
    uid_root: Annotated[str | None, typer.Option(
        help="With --dicom: what new unique identifiers begin with, such as an organisation's own"
             " root; else they are UUIDs under 2.25.")] = None,
    run: Annotated[Path | None, typer.Option(
        help="Folder for what scrd-fast report makes a page of: scores, small pictures and maps."),
    ] = None,
    failed: Annotated[Path | None, typer.Option(
        help="CSV file of what could not be scored; failed.csv beside --out by default.")] = None,
    trust: Trust = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score images; unreadable ones are named, the rest is scored (exit code 1 then)."""
    from scrd_fast.data.to_score import find_to_score
    from scrd_fast.engine.load import load_engine
    from scrd_fast.errors import InputError, expect
    from scrd_fast.files import check_writable
    from scrd_fast.outputs.dicom.write import check_options
    from scrd_fast.outputs.maps import FORMATS
    from scrd_fast.report.run_folder import EVALUATION
    from scrd_fast.report.scores import check_failed, keep_apart, score_files, write_failed
    from scrd_fast.report.tables import choose_kind, open_scores

    _check_used(own_scale=(own_scale, overlays, "--overlays"),
                maps_format=(maps_format != "nifti", maps, "--maps"),
                objects=(objects != OBJECTS, dicom, "--dicom"),
                uid_root=(uid_root is not None, dicom, "--dicom"))
    expect(maps_format in FORMATS, "--maps-format", f"one of {FORMATS}", repr(maps_format))
    kind = choose_kind(out, as_json)
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
    for name, folder in (("--overlays", overlays), ("--maps", maps), ("--dicom", dicom),
                         ("--run", run)):
        if folder is not None:
            check_writable(folder, name, folder=True)
    expect(run is None or not (run / EVALUATION).exists(), "--run",
           f"a folder without {EVALUATION}, whose figures are of other scores", run)
    chosen = [each.strip() for each in objects.split(",")]
    if dicom is not None:
        try:
            check_options(chosen, uid_root)
        except InputError as refused:
            raise InputError(f"--{str(refused).replace('uid_root', 'uid-root', 1)}") from refused
    wanted = _Wanted(overlays, own_scale, maps, maps_format, dicom, chosen, uid_root, run)
    notes: list[str] = []
    errors: list[ScrdError] = []
    with show_progress("loading", enabled=not quiet) as step, load_engine(
            engine, trust=trust) as loaded:
        if verbose:
            for line in describe_engine(loaded):
                typer.echo(line, err=True)
        began = time.monotonic()
        outputs = list(_list_outputs(wanted, loaded, images, found.paths, notes, step))
        # The table is worth most, and is there before anything else is.
        with keep_apart(outputs, errors) as take, open_scores(out, kind) as write:
            reasons = score_files(loaded, found, write, take=take if outputs else None,
                                  distances=run is not None, progress=step)
    if verbose:
        typer.echo(f"{len(found.paths)} files in {time.monotonic() - began:.1f} s", err=True)
    for message in notes:
        typer.echo(f"warning: {message}", err=True)
    for message in reasons.values():
        typer.echo(f"not scored: {message}", err=True)
    if failed is not None:
        write_failed(reasons, failed)
    for error in errors[:-1]:
        typer.echo(f"error: {error}", err=True)
    for error in errors[-1:]:
        raise error
    if reasons:
        raise typer.Exit(1)


def _check_used(**options: tuple[bool, Path | None, str]) -> None:
    """Raise InputError for an option that is given without that which it belongs to."""
    from scrd_fast.errors import expect

    for name, (given, folder, belongs) in options.items():
        expect(folder is not None or not given, f"--{name.replace('_', '-')}",
               f"{belongs} with it", "none")


@dataclass(frozen=True)
class _Wanted:
    """The options of `score` that say what is made beside the table."""

    overlays: Path | None
    own_scale: bool
    maps: Path | None
    maps_format: str
    dicom: Path | None
    objects: list[str]
    uid_root: str | None
    run: Path | None


def _list_outputs(
    wanted: _Wanted, engine: "Engine", places: Sequence[Path], paths: Sequence[Path],
    notes: list[str], progress: Progress,
) -> "Iterator[AbstractContextManager[Take]]":
    """Each gives what takes rows and images to make an output of them, which is whole at its end.
    """
    from scrd_fast.data.decode.series import read_sources
    from scrd_fast.outputs.dicom.collect import collect_dicom
    from scrd_fast.outputs.maps import collect_maps
    from scrd_fast.report.overlays import collect_overlays
    from scrd_fast.report.run_folder import collect_run
    from scrd_fast.report.scores import draw_overlay, keep_run

    known = engine.decisions and engine.decisions.maps
    sources = None if wanted.maps is wanted.dicom is None else read_sources(paths)
    if wanted.overlays is not None:
        yield _adapt(collect_overlays(wanted.overlays, scale=known.scale if known else None,
                                      own=wanted.own_scale, progress=progress),
                     draw_overlay)
    if wanted.maps is not None:
        yield _adapt(collect_maps(wanted.maps, wanted.maps_format, paths, notes, sources=sources),
                     lambda take, item: take(item))
    if wanted.dicom is not None:
        yield _adapt(collect_dicom(wanted.dicom, engine, paths, notes, objects=wanted.objects,
                                   uid_root=wanted.uid_root, sources=sources),
                     lambda take, item: take(item))
    if wanted.run is not None:
        names = ", ".join(place.resolve().name for place in places)
        yield keep_run(collect_run(wanted.run, engine, names))


@contextmanager
def _adapt(output: AbstractContextManager[Any], give: Callable[[Any, "Scored"], None]
           ) -> "Iterator[Take]":
    """An output that has no use for files that were refused, and so have no image."""
    with output as made:
        yield lambda row, item: give(made, item) if item is not None else None


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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn from held-out images which scores are anomalous; nothing is built again."""
    from scrd_fast.evaluation.calibrate import calibrate as run

    with show_progress("loading", enabled=not quiet) as shown:
        decisions = run(engine, str(normals), fpr=fpr, rule=rule, target=target, seed=seed,
                        anomalous=None if anomalous is None else str(anomalous), trust=trust,
                        patient_from=patient_from, progress=shown)
    if as_json:
        told = asdict(decisions)
        told["normal_images"] = len(told.pop("normal_scores"))
        del told["scale_weights"]
        typer.echo(json.dumps({"engine": str(engine), **told}))
        return
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
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Do recent images still look like the calibration's normal ones? Exit code 1 where not."""
    from scrd_fast.evaluation.calibrate import monitor as run

    with show_progress("loading", enabled=not quiet) as shown:
        found = run(engine, str(images), alpha=alpha, trust=trust, progress=shown)
    if as_json:
        typer.echo(json.dumps({"engine": str(engine), **asdict(found)}))
    else:
        for name, p in found.p_values.items():
            typer.echo(f"  {name:<15} p = {p:.3g}{'  differs' if name in found.drifted else ''}")
        typer.echo(f"{found.images} images: " + (
            f"{', '.join(found.drifted)}: not as at calibration (p below {found.level:.2g})"
            if found.drifted else f"no drift (no p below {found.level:.2g})"))
    if found.drifted:
        raise typer.Exit(1)
