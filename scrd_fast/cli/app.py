"""The application, and options that several verbs have. Loads nothing heavy: --help is quick."""

from typing import Annotated

import typer

from scrd_fast import __version__

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
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option(
    "--skip-bad", help="Leave out images that cannot be used instead of stopping.")]
PatientFrom = Annotated[str | None, typer.Option(
    help="Regular expression that finds the patient in each file's path, as its first group, so"
         " that no patient is in two parts; else DICOM and data sets tell.")]
Precision = Annotated[str, typer.Option(
    help="auto, fp32, bf16, fp16 (on a GPU), int8 or, with TensorRT, fp8 (8 bits with --images);"
         " auto is the fastest for which the fidelity limits hold, as measured here.")]


def example(*lines: str) -> str:
    return "[bold]Example[/bold]\n\n" + "\n\n".join(f"  {line}" for line in lines)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
