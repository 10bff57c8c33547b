"""From the official download of a published data set to a folder that this package reads."""

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import Quiet, app, example
from scrd_fast.progress import show_progress


@app.command(epilog=example(
    "scrd-fast prepare brain-tumor brain-tumor-mri-dataset/ brain-tumor/ --split data.json"))
def prepare(
    name: Annotated[str, typer.Argument(
        help="rsna, brain-tumor, isic2018, or isic2018-validation to test on that part.")],
    source: Annotated[Path, typer.Argument(
        help="Folder of the unpacked official download; stays as it is.")],
    out: Annotated[Path, typer.Argument(
        help="Folder to write: a table, links to the images, and what was found.")],
    split: Annotated[Path | None, typer.Option(
        help="JSON file with the published lists of file names (data.json of MedIAnomaly or"
             " DDAD); else images are drawn by the seed.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split, where it is drawn.")] = 0,
    partial: Annotated[bool, typer.Option(
        "--partial", help="Take a download of which images are missing; that is recorded.",
    )] = False,
    quiet: Quiet = False,
) -> None:
    """Make a data set of an official download: checked, labelled and split."""
    from scrd_fast.data.prepare import prepare as run

    with show_progress("looking at the download", enabled=not quiet) as shown:
        made = run(name, source, out, split=split, seed=seed, partial=partial, progress=shown)
    typer.echo(f"{made.table}: {made.title}")
    for part, counts in made.counts.items():
        typer.echo(f"  {part:<10} {counts.get(0, 0):>5} normal {counts.get(1, 0):>5} anomalous")
    typer.echo(f"  split: {made.split}")
    for remark in made.remarks:
        typer.echo(f"  {remark}")
