"""Pages about runs."""

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import Quiet, app, example
from scrd_fast.progress import show_progress


@app.command(epilog=example("scrd-fast report results/ report.html"))
def report(
    run: Annotated[Path, typer.Argument(
        help="Folder that scrd-fast score --run or scrd-fast evaluate --out wrote.")],
    out: Annotated[Path, typer.Argument(help="HTML page to write.")],
    images: Annotated[int, typer.Option(
        help="How many images the gallery holds at most: the most and the least anomalous.",
    )] = 1000,
    patients: Annotated[bool, typer.Option(
        "--patients", help="Show the patients' IDs, which are numbers otherwise.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a run as one page that opens anywhere: scores, threshold, gallery, model card."""
    from scrd_fast.files import check_writable
    from scrd_fast.report.run_folder import list_files, read_run
    from scrd_fast.report.run_report import write_report
    from scrd_fast.report.templates import check_jinja2

    check_jinja2()
    check_writable(out, "OUT", inputs=list_files(run))
    with show_progress("reading", enabled=not quiet) as step:
        shown = write_report(read_run(run), out, images=images, patients=patients, progress=step)
    typer.echo(f"{out}: {shown} images, {out.stat().st_size / 1e6:.1f} MB")
