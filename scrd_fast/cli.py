"""The command line: scrd-fast VERB. Heavy imports happen inside the verb that needs them."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from scrd_fast import __version__
from scrd_fast.backends.registry import BACKENDS
from scrd_fast.errors import ScrdError, expect
from scrd_fast.progress import show_progress

app = typer.Typer(
    help="Train and run scale-aware contrastive reverse distillation: the same score everywhere.",
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

Trust = Annotated[bool, typer.Option(
    help="Also run a TensorRT plan that you did not build; a plan is code.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
Backbone = Annotated[str, typer.Option(
    help="resnet18, resnet34, resnet50 or wide_resnet50_2.")]
InputSize = Annotated[int, typer.Option(help="Side of the network input, divisible by 32.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option(
    "--skip-bad", help="Leave out images that cannot be used instead of stopping.")]
Autocast = Annotated[str, typer.Option(help="fp32, or autocast to bf16 or fp16.")]
Precision = Annotated[str, typer.Option(
    help="auto, fp32, bf16, fp16 (on a GPU), int8 or, with TensorRT, fp8 (8 bits with --images);"
         " auto is the fastest for which the fidelity limits hold, as measured here.")]


def _example(*lines: str) -> str:
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {line}" for line in lines)


@app.command(epilog=_example("scrd-fast demo --out demo-results"))
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


@app.command(epilog=_example(
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


@app.command(epilog=_example(
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
    from scrd_fast.data.anomalies import NoiseConfig
    from scrd_fast.data.dataset import labelled_folder
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


@app.command(epilog=_example("scrd-fast convert official.pth model.safetensors"))
def convert(
    source: Annotated[Path, typer.Argument(help="What the published code saved (.pth).")],
    out: Annotated[Path, typer.Argument(help="Checkpoint to write (.safetensors).")],
) -> None:
    """Import a checkpoint of the published code; nothing in it is executed."""
    from scrd_fast.model.published_pickle import convert_published

    with show_progress("converting"):
        convert_published(source, out)
    typer.echo(f"{out}: converted; build it with: scrd-fast build {out}")


@app.command(epilog=_example("scrd-fast build model.safetensors --images normals/"))
def build(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint (.safetensors).")] = None,
    out: Annotated[Path | None, typer.Option(help="Engine file; beside it by default.")] = None,
    again: Annotated[Path | None, typer.Option(
        "--from", help="Instead of a checkpoint: compile this engine file again, for this machine,"
                       " with its own backend and precision.")] = None,
    backend: Annotated[str, typer.Option(
        help=f"auto, {', '.join(BACKENDS[:-1])} or {BACKENDS[-1]}.")] = "auto",
    precision: Precision = "auto",
    device: Annotated[str | None, typer.Option(
        help="cpu, cuda or cuda:<index>; by default a GPU where one can be used.")] = None,
    images: Annotated[Path | None, typer.Option(
        help="Folder of normal images to calibrate int8 and judge fidelity on; not kept.")] = None,
    budget: Annotated[float, typer.Option(
        help="Seconds after which no further precision is tried and no further layer searched.",
    )] = 600.0,
    workspace_gb: Annotated[float | None, typer.Option(
        help="TensorRT: the most scratch memory of a layer.")] = None,
    level: Annotated[int, typer.Option(
        help="TensorRT: 0 builds fast, 5 builds the fastest plan.")] = 3,
    stripped: Annotated[bool, typer.Option(
        help="TensorRT: a plan without weights; loading puts them back.")] = False,
    tail: Annotated[str, typer.Option(
        help="TensorRT: onnx, or plugin for the distances by our own kernel.")] = "onnx",
    report: Annotated[Path | None, typer.Option(
        help="HTML page to write: what was tried, with score error against latency.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compile a checkpoint into one engine file for this machine."""
    from scrd_fast.backends.tensorrt.plan import TensorRtOptions
    from scrd_fast.building.build import build_engine
    from scrd_fast.building.rebuild import rebuild_engine
    from scrd_fast.files import check_writable
    from scrd_fast.report.build_report import (
        check_matplotlib,
        private_matplotlib,
        write_build_report,
    )

    if (checkpoint is None) == (again is None):
        raise typer.BadParameter("expected a checkpoint or --from ENGINE, and not both")
    if again is not None and report is not None:
        raise typer.BadParameter("--report: expected a build, got --from, which judges nothing new")
    if report is not None:
        assert checkpoint is not None
        check_matplotlib()
        check_writable(report, "--report", inputs=[checkpoint])
        expect(report.resolve() != (out or checkpoint.with_suffix(".scrd")).resolve(), "--report",
               "another file than the engine's", report)
    with show_progress("loading", enabled=not quiet) as shown:
        if again is not None:
            engine = rebuild_engine(again, out, device=device, progress=shown)
        else:
            assert checkpoint is not None
            engine = build_engine(
                checkpoint, out, backend=backend, precision=precision, device=device,
                images=None if images is None else str(images), budget=budget, progress=shown,
                tensorrt=TensorRtOptions(workspace_gb=workspace_gb, level=level,
                                         stripped=stripped, tail=tail))
    if again is not None:
        typer.echo(f"{engine.path}: compiled again for this machine, and gives its golden images'"
                   " scores")
        return
    fidelity = engine.manifest.fidelity
    typer.echo(f"{engine.path}: {engine.manifest.backend} {engine.manifest.precision},"
               f" score error {fidelity['score_error']:.1e}, map error"
               f" {fidelity['map_error']:.1e} against the reference")
    for row in fidelity["candidates"]:
        ms = "" if row["ms"] is None else f"{row['ms']:.2f} ms"
        why = row["why_not"] or f"keeps the limits, score error {row['score_error']:.1e}"
        typer.echo(f"  {row['precision']:<5} {ms:>10}  {why}")
    if engine.decisions is not None:
        typer.echo("  calibration kept: the model is the same, and so are the scores")
    if report is not None:
        with private_matplotlib(report.parent):
            write_build_report(engine.path, report)
        typer.echo(f"{report}: what was tried")


@app.command(epilog=_example("scrd-fast score model.scrd images/ --out scores.csv"))
def score(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders.")],
    out: Annotated[Path | None, typer.Option(help="CSV file instead of standard output.")] = None,
    overlays: Annotated[Path | None, typer.Option(help="Folder for heat-map PNGs.")] = None,
    trust: Trust = False,
) -> None:
    """Score images; unreadable ones are named, the rest is scored (exit code 1 then)."""
    from scrd_fast.data.images import list_images
    from scrd_fast.engine.load import load_engine
    from scrd_fast.files import check_writable
    from scrd_fast.report.scores import score_files

    paths = list_images(images)
    if out is not None:
        check_writable(out, "--out", inputs=[engine, *paths])
    if overlays is not None:
        check_writable(overlays, "--overlays", folder=True)
    with show_progress("loading") as step:
        loaded = load_engine(engine, trust=trust)
        failed = score_files(loaded, paths, out=out, overlays=overlays, progress=step)
    for message in failed:
        typer.echo(f"not scored: {message}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command(epilog=_example("scrd-fast export model.safetensors model.onnx"))
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.safetensors).")],
    out: Annotated[Path, typer.Argument(help="ONNX file to write.")],
) -> None:
    """Write a portable ONNX graph: uint8 images in; score, map and scale weights out."""
    from scrd_fast.building.build import export_onnx

    with show_progress("exporting"):
        export_onnx(checkpoint, out)
    typer.echo(f"{out}: input images uint8 (batch, height, width, 3);"
               " outputs score, map, scale_weights")


@app.command(epilog=_example("scrd-fast info model.scrd"))
def info(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    layers: Annotated[bool, typer.Option(
        help="Also load it and list its compiled layers with precisions and times (TensorRT).",
    )] = False,
    trust: Trust = False,
) -> None:
    """Print what an engine file says of itself, as JSON."""
    import json

    from scrd_fast.engine.engine_file import describe
    from scrd_fast.engine.load import load_engine

    told = describe(engine)
    if layers:
        with show_progress("timing layers"), load_engine(engine, trust=trust) as loaded:
            told["layers"] = loaded.layers()
    typer.echo(json.dumps(told, indent=1))


@app.command(epilog=_example("scrd-fast verify model.scrd"))
def verify(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")], trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Replay the golden images on this machine; exit code 2 where the scores differ."""
    from scrd_fast.engine.load import verify_engine

    with show_progress("loading", enabled=not quiet) as step:
        figures = verify_engine(engine, trust=trust, progress=step)
    shown = "  ".join(f"{name} {value:.1e}" for name, value in figures.items())
    typer.echo(f"{engine}: reproduces its golden images  {shown}")


@app.command(epilog=_example("scrd-fast bench model.scrd --json bench.json"))
def bench(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd).")],
    seconds: Annotated[float, typer.Option(help="About how long to measure.")] = 60.0,
    out: Annotated[Path | None, typer.Option(
        "--json", help="File for all figures, the environment with them.")] = None,
    device: Annotated[str | None, typer.Option(
        help="cuda:<index> for an engine that runs on a GPU.")] = None,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Time an engine on this machine, from pixels to score and map."""
    import json

    from scrd_fast.bench.bench import bench as run
    from scrd_fast.files import atomic_write, check_writable
    from scrd_fast.report.bench import lines

    if out is not None:
        check_writable(out, "--json", inputs=[engine])
    with show_progress("loading", enabled=not quiet) as step:
        found = run(engine, device=device, trust=trust, seconds=seconds, progress=step)
    for line in lines(found):
        typer.echo(line)
    if out is not None:
        with atomic_write(out) as temporary:
            temporary.write_text(json.dumps(found.to_dict(), indent=1) + "\n")
        typer.echo(f"{out}: all figures")


@app.command(epilog=_example(
    "scrd-fast calibrate model.scrd held-out-normals/ --fpr 0.01",
    "scrd-fast calibrate model.scrd held-out-normals/ --anomalous sick/ --rule sensitivity"
    " --target 0.95"))
def calibrate(
    engine: Annotated[Path, typer.Argument(help="Engine file (.scrd), which keeps the result.")],
    normals: Annotated[Path, typer.Argument(help="Folder of normal images not trained on.")],
    fpr: Annotated[float | None, typer.Option(
        help="Largest share of normal images that may be called anomalous; 0.01 by default. Needs"
             " 1/fpr - 1 images.")] = None,
    anomalous: Annotated[Path | None, typer.Option(
        help="Folder of images with anomalies; --rule chooses the threshold then.")] = None,
    rule: Annotated[str | None, typer.Option(
        help="With --anomalous: f1 (the default), sensitivity or specificity.")] = None,
    target: Annotated[float | None, typer.Option(
        help="The sensitivity or specificity to reach.")] = None,
    seed: Seed = 0,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Learn from held-out images which scores are anomalous; nothing is built again."""
    from scrd_fast.evaluation.calibrate import calibrate as run

    with show_progress("loading", enabled=not quiet) as shown:
        decisions = run(engine, str(normals), fpr=fpr, rule=rule, target=target, seed=seed,
                        anomalous=None if anomalous is None else str(anomalous), trust=trust,
                        progress=shown)
    typer.echo(f"{engine}: anomalous above {decisions.threshold:.6g} ({decisions.rule}"
               f"{'' if decisions.target is None else f' {decisions.target:g}'}),"
               f" from {len(decisions.normal_scores)} normal images")
    for name, value in decisions.report.items():
        if name == "images":
            typer.echo(f"  on {value['normal']} normal and {value['anomalous']} anomalous images"
                       " that did not choose it:")
        else:
            typer.echo(f"  {name:<12} {value[0]:.3f}  (95 %: {value[1]:.3f} to {value[2]:.3f})")


@app.command(epilog=_example("scrd-fast monitor model.scrd images-of-last-week/"))
def monitor(
    engine: Annotated[Path, typer.Argument(help="Calibrated engine file (.scrd).")],
    images: Annotated[Path, typer.Argument(help="Folder of recent images.")],
    alpha: Annotated[float, typer.Option(help="Chance of a false alarm.")] = 0.01,
    trust: Trust = False,
    quiet: Quiet = False,
) -> None:
    """Do recent images still look like the calibration's normal ones? Exit code 1 where not."""
    from scrd_fast.engine.load import load_engine
    from scrd_fast.evaluation.calibrate import monitor as run

    with (show_progress("loading", enabled=not quiet) as shown,
          load_engine(engine, trust=trust) as loaded):
        found = run(loaded, str(images), alpha=alpha, progress=shown)
    for name, p in found.p_values.items():
        typer.echo(f"  {name:<15} p = {p:.3g}{'  differs' if name in found.drifted else ''}")
    typer.echo(f"{found.images} images: " + (
        f"{', '.join(found.drifted)}: not as at calibration (p below {found.level:.2g})"
        if found.drifted else f"no drift (no p below {found.level:.2g})"))
    if found.drifted:
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


# Whether typer brings its own click or uses the installed one, this is click's UsageError.
_UsageError: Any = typer.BadParameter.__mro__[1]
_BROKEN_PIPE = 141  # as shells have it: 128 and SIGPIPE


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning of this package is one line, without the place in the code that it came from."""
    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int,
             file: TextIO | None = None, line: str | None = None) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(home):
            typer.echo(f"warning: {' '.join(str(message).split())}", err=True)
        else:
            standard(message, category, filename, lineno, file, line)

    home = Path(__file__).parent
    with warnings.catch_warnings():
        standard, warnings.showwarning = warnings.showwarning, show
        yield


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line; an error is one line on standard error and exit code 2."""
    _spin_briefly()
    _open_standard_streams()
    with _plain_warnings():
        code, text = _run(sys.argv[1:] if arguments is None else [*arguments])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(sys.stdout)
        code, text = _BROKEN_PIPE, ""
    except OSError as error:
        _discard(sys.stdout)
        code, text = 2, f"error: standard output: cannot be written: {error.strerror}"
    try:
        if text:
            typer.echo(text, err=True)
        sys.stderr.flush()
    except OSError:  # nobody is left to tell; the exit code says it
        _discard(sys.stderr)
    sys.exit(code)


def _run(arguments: list[str]) -> tuple[int, str]:
    """Exit code, and what to say on standard error."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("scrd-fast", arguments) as context:
            command.invoke(context)
        return 0, ""
    except typer.Exit as done:
        return done.exit_code, ""
    except (typer.Abort, KeyboardInterrupt):
        return 130, "interrupted"
    except (BrokenPipeError, SystemExit):  # the latter is what Rich makes of the former
        return _BROKEN_PIPE, ""
    except ScrdError as error:
        text = str(error)
    except _UsageError as error:
        text = f"{error.format_message()} See scrd-fast --help."
    except OSError as error:  # such as a disk that is full
        where = "" if error.filename is None else f"{error.filename}: "
        text = f"{where}{error.strerror or error}"
    return 2, f"error: {' '.join(text.split())}"


def _spin_briefly() -> None:
    """Let PyTorch's threads soon sleep where they have no work, unless the user chose otherwise.

    Spinning takes the cores from whatever else runs there, and then from itself: beside another
    training on the same two cores a teacher's step takes 3.7 s with GNU's 300 000 turns, 0.95 s
    with these, 0.9 s with none; alone it is as fast with these as with all, and 13 % slower with
    none. Has an effect before PyTorch is loaded, here and in processes that are started from here.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "3000"


def _open_standard_streams() -> None:
    """Fill the places of closed standard streams, else a file opened later would become one.

    What is written to a closed standard output fails, for nobody would see it; messages to a
    closed standard error are lost. Names of files that the terminal cannot show are escaped.
    """
    for number, flags in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """Let what a stream still holds go nowhere: the interpreter flushes it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
