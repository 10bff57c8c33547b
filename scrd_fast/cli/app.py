"""The application, and options that several verbs have. Loads nothing heavy: --help is quick."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scrd_fast import __version__

if TYPE_CHECKING:
    from scrd_fast.engine.engine import Engine
    from scrd_fast.errors import ScrdError

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
Verbose = Annotated[bool, typer.Option(
    "--verbose", help="Also tell, on standard error, which engine scores, by what rule, and how"
                      " long it took.")]
Json = Annotated[bool, typer.Option(
    "--json", help="JSON for machines: an object in each line instead of text or CSV.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
SkipBad = Annotated[bool, typer.Option(
    "--skip-bad", help="Leave out images that cannot be used instead of stopping.")]
PatientFrom = Annotated[str | None, typer.Option(
    help="Regular expression that finds the patient in each file's path, as its first group, so"
         " that no patient is in two parts; else DICOM and data sets tell.")]
Precision = Annotated[str, typer.Option(
    help="auto, fp32, bf16, fp16 (on a GPU), int8 or, with TensorRT, fp8 (8 bits with --images);"
         " auto is the fastest for which the fidelity limits hold, as measured here.")]

OBJECTS = "pm,seg,sc,sr"  # DICOM objects of results, where no others are asked for
OBJECTS_HELP = ("pm (parametric map), seg (segmentations), sc (secondary captures) and sr"
                " (structured report), with commas between.")
UID_ROOT_HELP = ("what new unique identifiers begin with, such as an organisation's own root; else"
                 " they are UUIDs under 2.25.")


def check_objects(objects: Sequence[str], uid_root: str | None) -> None:
    """Raise InputError for values of --objects and --uid-root that write_dicom does not take, and
    MissingExtra where what writes DICOM is not installed."""
    from scrd_fast.errors import InputError
    from scrd_fast.outputs.dicom.write import check_options

    try:
        check_options(objects, uid_root)
    except InputError as error:
        raise InputError(f"--{str(error).replace('uid_root', 'uid-root', 1)}") from error


@contextmanager
def load_ahead(engine: Path, *, trust: bool) -> "Iterator[Callable[[], Engine]]":
    """Load an engine while the block does other things; gives what waits for it.

    Compiling needs no Python, and what Python imports to find and read images takes as long.
    """
    from concurrent.futures import ThreadPoolExecutor

    from scrd_fast.engine.load import load_engine

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(load_engine, engine, trust=trust)
        try:
            yield loading.result
        finally:
            if loading.exception() is None:
                loading.result().close()


def tell_engine(engine: "Engine") -> None:
    """Say on standard error which engine this is, by what rule it reads files, what it knows."""
    from scrd_fast.engine.engine_file import manifest_digest

    m, decisions = engine.manifest, engine.decisions
    rule = ", ".join(f"{name} {value}" for name, value in asdict(m.spec.decoding).items())
    for line in (
            f"{engine.path}: {m.model.network}, {m.spec.input_size} px, {m.backend}"
            f" {m.precision}, batches of {', '.join(map(str, m.buckets))}; digest"
            f" {manifest_digest(m)}",
            f"files are read by: {rule}",
            *([] if m.spec.prior is None else [f"judged by a prior: {m.spec.prior.describe()}"]),
            "not calibrated: there are no p-values and no decisions" if decisions is None else
            f"anomalous above {decisions.threshold:.6g} ({decisions.rule}), from"
            f" {len(decisions.normal_scores)} normal images"):
        typer.echo(line, err=True)


def raise_all(errors: Sequence["ScrdError"]) -> None:
    """Raise the last of the errors, where there are some, and say the others first."""
    for error in errors[:-1]:
        typer.echo(f"error: {error}", err=True)
    if errors:
        raise errors[-1]


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
