"""Training: the demo, a teacher, a model, and importing published checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import PatientFrom, Precision, Quiet, Seed, SkipBad, app, example
from scrd_fast.cli.options import options_of
from scrd_fast.errors import DataError
from scrd_fast.progress import show_progress
from scrd_fast.spec import DecodingRule, parse_limits
from scrd_fast.training.config import PretrainConfig, TrainConfig


@app.command(epilog=example("scrd-fast demo --out demo-results"))
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("demo-results"),
    teacher: Annotated[str, typer.Option(
        help="pretrain (from the demo's own normal images), imagenet, or a file.")] = "pretrain",
    seed: Seed = 0,
    precision: Precision = "auto",
    quiet: Quiet = False,
) -> None:
    """Train a small model on real brain anatomy, build an engine, score held-out images."""
    from scrd_fast.demo import print_summary, run_demo

    print_summary(run_demo(out, teacher=teacher, seed=seed, precision=precision,
                           progress=not quiet))


@app.command(epilog=example(
    "scrd-fast pretrain-teacher normals/ teacher.safetensors --backbone resnet18"))
@options_of(PretrainConfig)
def pretrain_teacher(
    data: Annotated[Path, typer.Argument(
        help="Folder of normal images, or a data set in a known layout (docs/data_sets.md).")],
    out: Annotated[Path, typer.Argument(help="Teacher file to write (.safetensors).")],
    config: PretrainConfig,
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """Make a teacher from normal images, where ImageNet weights are not to be had."""
    from scrd_fast.training.pretrain import pretrain_teacher as run

    path = run(str(data), out, skip_bad=skip_bad, progress=not quiet, **vars(config))
    typer.echo(f"{path}: use it with: scrd-fast train {data} model.safetensors --teacher {path}"
               f" --backbone {config.backbone} --input-size {config.input_size}")


@app.command(epilog=example(
    "scrd-fast train normals/ model.safetensors --backbone wide_resnet50_2 --teacher imagenet",
    "torchrun --nproc-per-node 2 -m scrd_fast train normals/ model.safetensors"))
@options_of(TrainConfig, leave_out=["selection"])  # --published-test says it
def train(
    data: Annotated[Path, typer.Argument(
        help="Folder of normal images, or a data set in a known layout (docs/data_sets.md).")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write (.safetensors).")],
    config: TrainConfig,
    validation: Annotated[Path | None, typer.Option(
        help="Held-out normal images of other patients, a folder or a data set; else those of the"
             " data set, else a share of the images, whole patients where these are known.",
    )] = None,
    published_test: Annotated[Path | None, typer.Option(
        help="Folder with good/ and other subfolders: choose the checkpoint on this test set, as"
             " published; its AUROC is then optimistic.",
    )] = None,
    patient_from: PatientFrom = None,
    resume: Annotated[bool, typer.Option(
        "--resume", help="Continue a run that was interrupted, or that is to have more steps; where"
                         " there is none, begin it.")] = False,
    skip_bad: SkipBad = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train on normal images only."""
    from scrd_fast.training.data import labelled_test
    from scrd_fast.training.loop import train as run
    from scrd_fast.training.run import steps_done

    done = steps_done(out) if resume else 0
    test = None
    if published_test is not None:
        test = labelled_test(published_test, patient_from)
        config = replace(config, selection="published_test")
    checkpoint = run(
        str(data), out, validation=None if validation is None else str(validation), test=test,
        patient_from=patient_from, resume=resume, skip_bad=skip_bad, progress=not quiet,
        tensorboard=tensorboard, **vars(config))
    name, value = next((k, v) for k, v in checkpoint.metrics.items() if k.startswith("auroc"))
    if done == config.steps:
        typer.echo(f"{out}: complete: {done} steps are done; give more --steps to go on")
    typer.echo(f"{out}: best at step {checkpoint.metrics['step']}, {name} {value:.4f}")
    if test is not None:
        typer.echo("warning: the checkpoint was chosen on the test set (published protocol);"
                   " its AUROC there is optimistic")


@app.command(epilog=example("scrd-fast convert official.pth model.safetensors"))
@options_of(DecodingRule, panel="How files become images")
def convert(
    source: Annotated[Path, typer.Argument(help="What the published code saved (.pth).")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write (.safetensors).")],
    decoding: DecodingRule,
) -> None:
    """Import a checkpoint of the published code; nothing in it is executed."""
    from scrd_fast.model.published_pickle import convert_published

    with show_progress("converting"):
        convert_published(source, out, decoding=decoding)
    typer.echo(f"{out}: converted; build it with: scrd-fast build {out}")


@app.command(epilog=example(
    "scrd-fast prior model.safetensors normals/ --validation held-out-normals/"))
def prior(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.safetensors), which keeps it.")],
    normals: Annotated[Path, typer.Argument(
        help="Folder of normal images of at least 20 people, or a data set in a known layout.")],
    out: Annotated[Path | None, typer.Option(
        help="Another checkpoint to write, instead of the same.")] = None,
    validation: Annotated[Path | None, typer.Option(
        help="Normal images of other patients that judge it; else those of the data set, else a"
             " fifth of the images, whole patients where these are known.")] = None,
    foreground: Annotated[str | None, typer.Option(
        help="LOW,HIGH from 0 to 1: what is darker than LOW, with all around it, does not count,"
             " what is brighter than HIGH does fully.")] = None,
    force: Annotated[bool, typer.Option(
        "--force", help="Write it even where its gain on held-out images is not clear of zero.",
    )] = False,
    patient_from: PatientFrom = None,
    skip_bad: SkipBad = False,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Learn what is normal at each place of aligned images, and judge distances by it."""
    from scrd_fast.training.prior import fit_prior

    found = fit_prior(
        checkpoint, str(normals), out=out, patient_from=patient_from,
        validation=None if validation is None else str(validation), force=force,
        foreground=None if foreground is None else parse_limits(foreground, "foreground"),
        skip_bad=skip_bad, seed=seed, progress=not quiet)
    value, low, high = found.gain
    interval = " (how certain cannot be told)" if low is None else (
        f" (95 %: {low:+.3f} to {high:+.3f})")
    if not found.written:
        raise DataError(
            "prior: expected a gain on held-out images that is clear of zero, got"
            f" {found.auroc_with:.3f} with it and {found.auroc_without:.3f} without, {value:+.3f}"
            f" in AUROC{interval}; are the images aligned, and of the kind that the model was"
            " trained on? Nothing is written; --force writes it all the same")
    typer.echo(f"{out or checkpoint}: {found.prior.describe()}")
    typer.echo(f"  AUROC of held-out images against the same with synthesised anomalies, of"
               f" {found.strength:.2g} times the training's strength: {found.auroc_without:.3f}"
               f" without, {found.auroc_with:.3f} with it, {value:+.3f}{interval}")
    typer.echo(f"  build engines again: scrd-fast build {out or checkpoint}")
