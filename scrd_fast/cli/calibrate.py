"""What scores mean, and whether they still do."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import Json, PatientFrom, Quiet, Seed, Trust, app, example
from scrd_fast.progress import show_progress


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
