"""Scoring images, and all that is made of their results."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scrd_fast.cli.app import (
    OBJECTS,
    OBJECTS_HELP,
    UID_ROOT_HELP,
    Json,
    Quiet,
    Trust,
    Verbose,
    app,
    check_objects,
    example,
    load_ahead,
    raise_all,
    tell_engine,
)
from scrd_fast.progress import Progress, show_progress

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine
    from scrd_fast.engine.stream import Scored
    from scrd_fast.errors import ScrdError
    from scrd_fast.report.scores import Take

MAPS_FORMAT = "nifti"  # where nothing else is asked for


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
        help="nifti (on the grid of a NIfTI or DICOM source), npz or tiff.")] = MAPS_FORMAT,
    dicom: Annotated[Path | None, typer.Option(
        help="Folder for results as DICOM objects of the sources' own studies.")] = None,
    objects: Annotated[str, typer.Option(
        help=f"With --dicom: {OBJECTS_HELP}")] = OBJECTS,
    uid_root: Annotated[str | None, typer.Option(
        help=f"With --dicom: {UID_ROOT_HELP}")] = None,
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
    wanted = _Wanted(overlays, own_scale, maps, maps_format, dicom,
                     [each.strip() for each in objects.split(",")], uid_root, run)
    _check_wanted(wanted)
    with load_ahead(engine, trust=trust) as wait_for_engine:
        _score(engine, images, out, failed, wanted, wait_for_engine, as_json=as_json, quiet=quiet,
               verbose=verbose)


def _score(
    engine: Path, images: list[Path], out: Path | None, failed: Path | None, wanted: "_Wanted",
    wait_for_engine: "Callable[[], Engine]", *, as_json: bool, quiet: bool, verbose: bool,
) -> None:
    from scrd_fast.data.to_score import find_to_score
    from scrd_fast.errors import expect
    from scrd_fast.files import check_writable
    from scrd_fast.report.scores import check_failed, keep_apart, score_files, write_failed
    from scrd_fast.report.tables import choose_kind, open_scores

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
    for name in ("overlays", "maps", "dicom", "run"):
        if (folder := getattr(wanted, name)) is not None:
            check_writable(folder, f"--{name}", folder=True)
    notes: list[str] = []
    errors: list[ScrdError] = []
    with show_progress("loading", enabled=not quiet) as step:
        loaded = wait_for_engine()
        if verbose:
            tell_engine(loaded)
        began = time.monotonic()
        outputs = list(_list_outputs(wanted, loaded, images, found.paths, notes, step))
        # The table is worth most, and is there before anything else is.
        with keep_apart(outputs, errors) as take, open_scores(out, kind) as write:
            reasons = score_files(loaded, found, write, take=take if outputs else None,
                                  distances=wanted.run is not None, progress=step)
    if verbose:
        typer.echo(f"{len(found.paths)} files in {time.monotonic() - began:.1f} s", err=True)
    for message in notes:
        typer.echo(f"warning: {message}", err=True)
    for message in reasons.values():
        typer.echo(f"not scored: {message}", err=True)
    if failed is not None:
        write_failed(reasons, failed)
    raise_all(errors)
    if reasons:
        raise typer.Exit(1)


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


def _check_wanted(wanted: _Wanted) -> None:
    """Raise InputError for an option without that which it belongs to, and for bad values."""
    from scrd_fast.errors import expect

    for name, given, belongs in (
            ("--own-scale", wanted.own_scale, "overlays"),
            ("--maps-format", wanted.maps_format != MAPS_FORMAT, "maps"),
            ("--objects", ",".join(wanted.objects) != OBJECTS, "dicom"),
            ("--uid-root", wanted.uid_root is not None, "dicom")):
        expect(not given or getattr(wanted, belongs) is not None, name, f"--{belongs} with it",
               "none")
    if wanted.maps is not None:
        from scrd_fast.outputs.maps import FORMATS

        expect(wanted.maps_format in FORMATS, "--maps-format", f"one of {FORMATS}",
               repr(wanted.maps_format))
    if wanted.dicom is not None:
        check_objects(wanted.objects, wanted.uid_root)
    if wanted.run is not None:
        from scrd_fast.report.run_folder import EVALUATION

        expect(not (wanted.run / EVALUATION).exists(), "--run", f"a folder without {EVALUATION},"
               " whose figures are of other scores", wanted.run)


def _list_outputs(
    wanted: _Wanted, engine: "Engine", places: Sequence[Path], paths: Sequence[Path],
    notes: list[str], progress: Progress,
) -> "Iterator[AbstractContextManager[Take]]":
    """Each gives what takes rows and images to make an output of them, which is whole at its end.
    """
    from scrd_fast.report.scores import draw_overlay, keep_run

    sources = None
    if wanted.maps is not None or wanted.dicom is not None:
        from scrd_fast.data.decode.series import read_sources

        sources = read_sources(paths)
    if wanted.overlays is not None:
        from scrd_fast.report.overlays import collect_overlays

        known = engine.decisions and engine.decisions.maps
        yield _adapt(collect_overlays(wanted.overlays, scale=known.scale if known else None,
                                      own=wanted.own_scale, progress=progress),
                     draw_overlay)
    if wanted.maps is not None:
        from scrd_fast.outputs.maps import collect_maps

        yield _adapt(collect_maps(wanted.maps, wanted.maps_format, paths, notes, sources=sources),
                     lambda take, item: take(item))
    if wanted.dicom is not None:
        from scrd_fast.outputs.dicom.collect import collect_dicom

        yield _adapt(collect_dicom(wanted.dicom, engine, paths, notes, objects=wanted.objects,
                                   uid_root=wanted.uid_root, sources=sources),
                     lambda take, item: take(item))
    if wanted.run is not None:
        from scrd_fast.report.run_folder import collect_run

        names = ", ".join(place.resolve().name for place in places)
        yield keep_run(collect_run(wanted.run, engine, names))


@contextmanager
def _adapt(output: AbstractContextManager[Any], give: Callable[[Any, "Scored"], None]
           ) -> "Iterator[Take]":
    """An output that has no use for files that were refused, and so have no image."""
    with output as made:
        yield lambda row, item: give(made, item) if item is not None else None
