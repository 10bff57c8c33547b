"""From a checkpoint to an engine file, and what an engine file is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scrd_fast.backends.registry import BACKENDS
from scrd_fast.backends.tensorrt.plan import TensorRtOptions
from scrd_fast.cli.app import Precision, Quiet, Trust, app, example
from scrd_fast.cli.options import options_of
from scrd_fast.errors import expect
from scrd_fast.progress import Progress, show_progress

if TYPE_CHECKING:
    from scrd_fast.engine.manifest import Manifest


@app.command(epilog=example("scrd-fast build model.safetensors --images normals/"))
@options_of(TensorRtOptions, prefix="tensorrt_", panel="TensorRT")
def build(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint (.safetensors).")] = None,
    out: Annotated[Path | None, typer.Option(help="Engine file; beside it by default.")] = None,
    again: Annotated[Path | None, typer.Option(
        "--from", help="Instead of a checkpoint: compile this engine file again, for this machine,"
                       " with its own backend and precision.")] = None,
    targets: Annotated[str | None, typer.Option(
        "--for", metavar="GPUS",
        help="Compile for these generations of GPUs, which need not be here, such as"
             " sm86,sm89,sm120 (TensorRT for RTX).")] = None,
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
    *,
    tensorrt: TensorRtOptions,
    report: Annotated[Path | None, typer.Option(
        help="HTML page to write: what was tried, with score error against latency.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compile a checkpoint into one engine file, for this machine or for GPUs (--for)."""
    from scrd_fast.files import check_writable
    from scrd_fast.report.build_report import write_build_report
    from scrd_fast.report.templates import check_jinja2

    if (checkpoint is None) == (again is None):
        raise typer.BadParameter("expected a checkpoint or --from ENGINE, and not both")
    if again is not None:
        for name, given in (("--report", report), ("--for", targets)):
            if given is not None:
                raise typer.BadParameter(f"{name}: expected a checkpoint, got --from, which judges"
                                         " nothing new and compiles for this machine")
        with show_progress("loading", enabled=not quiet) as shown:
            _rebuild(again, out, device, shown)
        return
    assert checkpoint is not None
    target = out or checkpoint.with_suffix(".scrd")
    if report is not None:
        check_jinja2()
        check_writable(report, "--report", inputs=[checkpoint])
        expect(report.resolve() != target.resolve(), "--report", "another file than the engine's",
               report)
    normals = None if images is None else str(images)
    with show_progress("loading", enabled=not quiet) as shown:
        if targets is None:
            from scrd_fast.building.build import build_engine

            manifest = build_engine(
                checkpoint, out, backend=backend, precision=precision, device=device,
                images=normals, budget=budget, tensorrt=tensorrt, progress=shown).manifest
        else:
            from scrd_fast.building.cross_build import cross_build
            from scrd_fast.engine.engine_file import EngineFile

            expect(device is None, "--device", "none with --for", device)
            manifest = EngineFile(cross_build(
                checkpoint, out, targets=[each.strip() for each in targets.split(",")],
                backend=backend, precision=precision, images=normals, tensorrt=tensorrt,
                progress=shown)).manifest
    _tell_built(target.absolute(), manifest)
    if report is not None:
        write_build_report(target, report)
        typer.echo(f"{report}: what was tried")


def _rebuild(engine: Path, out: Path | None, device: str | None, shown: Progress) -> None:
    from scrd_fast.building.rebuild import rebuild_engine

    path = rebuild_engine(engine, out, device=device, progress=shown).path
    typer.echo(f"{path}: compiled again for this machine, and gives its golden images' scores")


def _tell_built(path: Path, manifest: "Manifest") -> None:
    """What was built, and what was tried."""
    fidelity, report_of = manifest.fidelity, manifest.fidelity.report
    typer.echo(f"{path}: {manifest.backend} {manifest.precision},"
               f" score error {report_of.score_error:.1e}, map error"
               f" {report_of.map_error:.1e} against the reference")
    for row in fidelity.candidates:
        ms = "" if row.ms is None else f"{row.ms:.2f} ms"
        kept = "" if row.report is None else f", score error {row.report.score_error:.1e}"
        typer.echo(f"  {row.precision:<5} {ms:>10}  {row.why_not or f'keeps the limits{kept}'}")
    if fidelity.emulated:
        assert manifest.plan is not None
        typer.echo(f"  for {', '.join(manifest.plan.targets)}; judged by its arithmetic on the CPU,"
                   " not on a GPU: the first time that it is loaded on one it has to give its"
                   " golden images' scores")
    if manifest.calibration is not None:
        typer.echo("  calibration kept: the model is the same, and so are the scores")


@app.command(epilog=example("scrd-fast export model.safetensors model.onnx",
                            "scrd-fast export brain.safetensors --triton-repo models/"))
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint (.safetensors).")],
    out: Annotated[Path | None, typer.Argument(help="ONNX file to write.")] = None,
    triton_repo: Annotated[Path | None, typer.Option(
        help="Model repository of Triton Inference Server to add the model to.")] = None,
    openvino: Annotated[Path | None, typer.Option(
        help="Model repository of OpenVINO Model Server to add the model to.")] = None,
    name: Annotated[str | None, typer.Option(
        help="What the model is called there; else as the checkpoint's file.")] = None,
    version: Annotated[int, typer.Option(help="Its version there.", min=1)] = 1,
) -> None:
    """Write a portable ONNX graph, alone or as other servers take it.

    uint8 images go in; score, map and scale weights come out.
    """
    from scrd_fast.building.build import export_onnx
    from scrd_fast.building.repositories import (
        PLUGIN_CONFIG,
        write_openvino_repository,
        write_triton_repository,
    )
    from scrd_fast.errors import expect

    repositories = ((triton_repo, write_triton_repository), (openvino, write_openvino_repository))
    expect(out is not None or triton_repo is not None or openvino is not None, "out",
           "an ONNX file, --triton-repo or --openvino", "none")
    is_named = name is not None or version != 1
    expect(not is_named or triton_repo is not None or openvino is not None, "--name and --version",
           "--triton-repo or --openvino with them", "neither")
    written = []
    with show_progress("exporting"):
        if out is not None:
            written.append(export_onnx(checkpoint, out))
        for folder, write in repositories:
            if folder is not None:
                written.append(write(checkpoint, folder, name=name, version=version))
    for each in written:
        typer.echo(f"{each}: input images uint8 (batch, height, width, 3);"
                   " outputs score, map, scale_weights")
    if openvino is not None:
        typer.echo(f"start OpenVINO Model Server with --plugin_config '{PLUGIN_CONFIG}', else it"
                   " computes in bf16 where the CPU has it, and scores differ from the engine's")


@app.command(epilog=example("scrd-fast info model.scrd"))
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


@app.command(epilog=example("scrd-fast verify model.scrd"))
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


@app.command(epilog=example("scrd-fast bench model.scrd --json bench.json"))
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

    from scrd_fast.files import atomic_write, check_writable
    from scrd_fast.report.bench import lines
    from scrd_fast.timing.bench import bench as run

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
