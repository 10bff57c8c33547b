"""Training: the demo, a teacher, a model, and importing published checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from scrd_fast.cli.app import (
    Autocast,
    Backbone,
    InputSize,
    Precision,
    Quiet,
    Seed,
    SkipBad,
    app,
    example,
)
from scrd_fast.progress import show_progress


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
def pretrain_teacher(
    data: Annotated[Path, typer.Argument(help="Folder of normal images.")],
    out: Annotated[Path, typer.Argument(help="Teacher file to write (.safetensors).")],
    backbone: Backbone = "resnet18",
    input_size: InputSize = 256,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 2000,
    coarse_steps: Annotated[int, typer.Option(
        help="How many of them, from the first on, at half the input size, for a quarter of the"
             " time.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 16,
    seed: Seed = 111,
    precision: Autocast = "fp32",
    skip_bad: SkipBad = False,
    quiet: Quiet = False,
) -> None:
    """Make a teacher from normal images, where ImageNet weights are not to be had."""
    from scrd_fast.training.pretrain import pretrain_teacher as run

    path = run(str(data), out, skip_bad=skip_bad, progress=not quiet, backbone=backbone,
               input_size=input_size, steps=steps, coarse_steps=coarse_steps,
               batch_size=batch_size, seed=seed, precision=precision)
    typer.echo(f"{path}: use it with: scrd-fast train {data} model.safetensors --teacher {path}")


@app.command(epilog=example(
    "scrd-fast train normals/ model.safetensors --backbone wide_resnet50_2 --teacher imagenet",
    "torchrun --nproc-per-node 2 -m scrd_fast train normals/ model.safetensors"))
def train(
    data: Annotated[Path, typer.Argument(help="Folder of normal images.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write (.safetensors).")],
    backbone: Backbone = "wide_resnet50_2",
    teacher: Annotated[str, typer.Option(
        help="imagenet, random, or a file (torchvision's .pth, or of pretrain-teacher).",
    )] = "imagenet",
    validation: Annotated[Path | None, typer.Option(
        help="Folder of held-out normal images of other patients; else a tenth is held out.",
    )] = None,
    input_size: InputSize = 256,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 40_000,
    batch_size: Annotated[int, typer.Option(help="Images per step and process.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    schedule: Annotated[str, typer.Option(help="constant (published) or cosine.")] = "constant",
    weighting: Annotated[str, typer.Option(help="none, scale or feature.")] = "none",
    reduction: Annotated[str, typer.Option(help="Image score: mean or max of the map.")] = "mean",
    noise_strength: Annotated[float, typer.Option(help="Of the synthetic anomalies.")] = 0.2,
    noise_share: Annotated[float, typer.Option(
        help="Largest patch side as a share of the image side.")] = 0.125,
    noise_channels: Annotated[str, typer.Option(
        help="independent (published) or shared, which fits grey images.")] = "independent",
    noise_texture: Annotated[str, typer.Option(
        help="per_sample, or shared: one texture for the whole run, as published.",
    )] = "per_sample",
    published_batchnorm: Annotated[bool, typer.Option(
        "--published-batchnorm", help="Also run the student on the noisy images.")] = False,
    published_test: Annotated[Path | None, typer.Option(
        help="Folder with good/ and other subfolders: choose the checkpoint on this test set, as"
             " published; its AUROC is then optimistic.",
    )] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between validations.")] = 500,
    seed: Seed = 111,
    precision: Autocast = "fp32",
    resume: Annotated[bool, typer.Option(
        "--resume", help="Continue a run that was interrupted, or that is to have more steps; where"
                         " there is none, begin it.")] = False,
    skip_bad: SkipBad = False,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train on normal images only."""
    from scrd_fast.data.dataset import labelled_folder
    from scrd_fast.data.noise_config import NoiseConfig
    from scrd_fast.training.loop import train as run
    from scrd_fast.training.run import steps_done

    done = steps_done(out) if resume else 0
    test = labelled_folder(published_test) if published_test is not None else None
    noise = NoiseConfig(strength=noise_strength, max_share=noise_share, channels=noise_channels,
                        texture=noise_texture)
    checkpoint = run(
        str(data), out, validation=None if validation is None else str(validation), test=test,
        resume=resume, skip_bad=skip_bad, progress=not quiet, tensorboard=tensorboard,
        backbone=backbone, teacher=teacher, input_size=input_size, steps=steps,
        batch_size=batch_size, learning_rate=learning_rate, schedule=schedule,
        weighting=weighting, reduction=reduction, noise=noise,
        published_batchnorm=published_batchnorm, validate_every=validate_every,
        selection="validation" if test is None else "published_test", seed=seed,
        precision=precision)
    name, value = next((k, v) for k, v in checkpoint.metrics.items() if k.startswith("auroc"))
    if done == steps:
        typer.echo(f"{out}: complete: {done} steps are done; give more --steps to go on")
    typer.echo(f"{out}: best at step {checkpoint.metrics['step']}, {name} {value:.4f}")
    if test is not None:
        typer.echo("warning: the checkpoint was chosen on the test set (published protocol);"
                   " its AUROC there is optimistic")


@app.command(epilog=example("scrd-fast convert official.pth model.safetensors"))
def convert(
    source: Annotated[Path, typer.Argument(help="What the published code saved (.pth).")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write (.safetensors).")],
) -> None:
    """Import a checkpoint of the published code; nothing in it is executed."""
    from scrd_fast.model.published_pickle import convert_published

    with show_progress("converting"):
        convert_published(source, out)
    typer.echo(f"{out}: converted; build it with: scrd-fast build {out}")
