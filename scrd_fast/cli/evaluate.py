"""Judging engines by labelled data sets."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scrd_fast.cli.app import (
    Json,
    PatientFrom,
    Quiet,
    Seed,
    Trust,
    Verbose,
    app,
    example,
    raise_all,
    tell_engine,
)
from scrd_fast.cli.options import options_of
from scrd_fast.progress import show_progress
from scrd_fast.training.config import TrainConfig

if TYPE_CHECKING:
    from scrd_fast.errors import ScrdError


@app.command(epilog=example("scrd-fast evaluate model.scrd dataset/ --out results/"))
def evaluate(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    data: Annotated[Path, typer.Argument(
        help="Data set with labels: a folder in a known layout, or a table (docs/data_sets.md).")],
    out: Annotated[Path | None, typer.Option(
        help="Folder for evaluation.json, figures.csv, images.csv, row.md, failed.csv, and for what"
             " scrd-fast report makes a page of.")] = None,
    gallery: Annotated[bool, typer.Option(
        help="Also keep, in --out, small pictures and maps for scrd-fast report.")] = True,
    patient_from: PatientFrom = None,
    patient_rule: Annotated[str, typer.Option(
        help="A patient's score is the max or mean of the images'.")] = "max",
    specificity: Annotated[float, typer.Option(
        help="Of the figure sensitivity at specificity.")] = 0.95,
    pixels: Annotated[bool, typer.Option(
        help="Judge maps by masks, where the data set has masks.")] = True,
    seed: Seed = 0,
    trust: Trust = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge an engine by a labelled data set; exit code 1 where files could not be scored."""
    from scrd_fast.engine.load import load_engine
    from scrd_fast.evaluation.evaluate import evaluate as run
    from scrd_fast.files import check_writable
    from scrd_fast.report.evaluation import (
        list_lines,
        make_judged_row,
        make_markdown,
        write_evaluation,
    )
    from scrd_fast.report.rows import ScoreRow
    from scrd_fast.report.run_folder import collect_run
    from scrd_fast.report.scores import check_failed, keep_apart, keep_run

    if out is not None:
        check_writable(out, "--out", folder=True)
        check_failed(out / "failed.csv")
    errors: list[ScrdError] = []
    with show_progress("loading", enabled=not quiet) as shown, load_engine(
            engine, trust=trust) as loaded:
        if verbose:
            tell_engine(loaded)
        runs = [] if out is None or not gallery else [
            keep_run(collect_run(out, loaded, data.resolve().name))]
        with keep_apart(runs, errors) as take:
            found = run(
                loaded, data, patient_from=patient_from, patient_rule=patient_rule,
                specificity=specificity, pixels=pixels, seed=seed, progress=shown,
                each=(lambda judged, item: take(make_judged_row(judged, item), item))
                if runs else None)
            for path, reason in found.failed.items():
                take(ScoreRow(str(path), error=reason.removeprefix(f"{path}: ")), None)
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        typer.echo(f"{data}: {found.layout}")
        for line in list_lines(found):
            typer.echo(line)
        typer.echo(f"\n{make_markdown(found)}", nl=False)
    if out is not None:
        write_evaluation(found, out)
    for reason in found.failed.values():
        typer.echo(f"not scored: {reason}", err=True)
    raise_all(errors)  # of the run alone: the evaluation is there
    if found.failed:
        raise typer.Exit(1)


@app.command(epilog=example("scrd-fast reproduce rsna rsna-prepared/ --out rsna-results/"))
@options_of(TrainConfig, leave_out=["selection", "seed"])
def reproduce(
    name: Annotated[str, typer.Argument(
        help="rsna, brain-tumor, isic2018 or isic2018-validation.")],
    data: Annotated[Path, typer.Argument(help="Folder that scrd-fast prepare made.")],
    config: TrainConfig,
    out: Annotated[Path, typer.Option(
        help="Folder for trainings and outcomes; what is there is not done again.")],
    seeds: Annotated[int, typer.Option(help="How many trainings by each protocol.")] = 3,
    protocol: Annotated[list[str] | None, typer.Option(
        help="published or held-out; both by default.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train and judge as published, and beside it without choosing anything on the test set."""
    from scrd_fast.evaluation.reproduce import PROTOCOLS, SEEDS, list_rows
    from scrd_fast.evaluation.reproduce import reproduce as run

    values = {key: value for key, value in vars(config).items() if key not in ("selection", "seed")}
    outcomes = run(name, data, out, seeds=range(SEEDS[0], SEEDS[0] + seeds),
                   protocols=protocol or PROTOCOLS, progress=not quiet, **values)
    for row in list_rows(name, outcomes):
        typer.echo(row)
