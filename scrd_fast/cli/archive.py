"""Scoring archives of images."""

from typing import Annotated

import typer

from scrd_fast.cli.app import Quiet, Trust, app, example
from scrd_fast.progress import show_progress, tell


@app.command(epilog=example(
    "scrd-fast score-archive manifest.csv --engine model.scrd --out scores/"))
def score_archive(
    manifest: Annotated[str, typer.Argument(
        help="CSV or Parquet table with the columns id and path; a path or a URL that fsspec"
             " knows, as are its paths, which begin at its folder.")],
    engine: Annotated[str, typer.Option(help="Engine file (.scrd), or its URL.")],
    out: Annotated[str, typer.Option(
        help="Folder, or its URL, for the results; a run that was stopped goes on in its own.")],
    ray: Annotated[str | None, typer.Option(
        help="Score by actors of Ray: local, or HOST:PORT or auto for a cluster that this machine"
             " is of, whose nodes see the same places.")] = None,
    actors: Annotated[int | None, typer.Option(
        help="With --ray: how many engines; one for each node by default.", min=1)] = None,
    rows: Annotated[int, typer.Option(
        help="Rows of the manifest that each file of results holds.", min=1, max=10**6)] = 1000,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Score an archive into Parquet files, each image exactly once however often it is stopped.

    The same command goes on. Exit code 1 where images could not be scored; failed.csv names them.
    """
    from scrd_fast.errors import expect, explain_missing

    expect(actors is None or ray is not None, "--actors", "--ray with it", "none")
    expect(not trust or ray is None, "--trust", "no --ray with it: a plan of TensorRT needs a GPU",
           ray)
    with explain_missing("score-archive", "archive"):
        from scrd_fast.serving.archive.job import score_archive as run
    try:
        with show_progress("looking", enabled=not quiet) as step:
            summary = run(manifest, engine, out, ray=ray, actors=actors, rows=rows, trust=trust,
                          progress=step)
    except KeyboardInterrupt:
        tell("stopped: the same command goes on")
        raise typer.Exit(130) from None
    typer.echo(f"{out}: {summary.files} files, {summary.images} images, {summary.failed} not scored"
               + ("" if summary.anomalous is None else f", {summary.anomalous} anomalous"))
    if summary.failed:
        raise typer.Exit(1)
