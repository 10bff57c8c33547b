"""A verb's options from the fields of a dataclass, which hold each default and each help text."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Annotated, Any, get_type_hints

import typer

from scrd_fast.errors import InputError, expect

Verb = Callable[..., None]


@dataclass(frozen=True)
class _Options:
    """The fields of `default`, a dataclass, as options.

    Those of a dataclass inside of it have its field's "prefix" before theirs, and its help as the
    title of a panel of their own. presets: values to have in place of the default, by name.
    """

    default: Any
    prefix: str
    panel: str | None
    leave_out: Collection[str]
    presets: Mapping[str, Any] = field(default_factory=dict)

    def _inside(self) -> dict[str, "_Options"]:
        """Map the fields that hold a dataclass to its options."""
        return {each.name: _Options(value, self.prefix + each.metadata["prefix"],
                                    each.metadata["help"], (), each.metadata.get("presets", {}))
                for each in fields(self.default)
                if is_dataclass(value := getattr(self.default, each.name))}

    def parameters(self) -> Iterator[inspect.Parameter]:
        """List what typer makes options of, in the order of the fields."""
        hints, inside = get_type_hints(type(self.default)), self._inside()
        if self.presets:
            yield self._preset()
        for each in fields(self.default):
            if each.name in self.leave_out:
                continue
            if each.name in inside:
                yield from inside[each.name].parameters()
                continue
            name = f"--{self.prefix}{each.metadata.get('option', each.name)}".replace("_", "-")
            parser = _explained(each.metadata.get("parser"))
            option = typer.Option(name, help=each.metadata["help"], rich_help_panel=self.panel,
                                  parser=parser, metavar="TEXT" if parser else None)
            default, text = getattr(self.default, each.name), each.metadata.get("text")
            yield inspect.Parameter(
                f"{self.prefix}{each.name}", inspect.Parameter.KEYWORD_ONLY,
                default=text(default) if text else default,
                annotation=Annotated[Any if parser else hints[each.name], option])

    def _preset(self) -> inspect.Parameter:
        """The option that names a preset."""
        def parse(name: str) -> str:
            expect(name in self.presets, f"{self.prefix}preset".replace("_", " "),
                   f"one of {tuple(self.presets)}", repr(name))
            return name

        *names, last = self.presets
        option = typer.Option(
            f"--{self.prefix}preset".replace("_", "-"), rich_help_panel=self.panel, metavar="TEXT",
            parser=_explained(parse), help="Take the options of this panel, but those that are"
                                           f" given, for {', '.join(names)} or {last}.")
        return inspect.Parameter(f"{self.prefix}preset", inspect.Parameter.KEYWORD_ONLY,
                                 default=None, annotation=Annotated[Any, option])

    def take(self, given: dict[str, Any], is_given: Callable[[str], bool]) -> Any:
        """Make the dataclass of the values that are taken out of `given`; is_given: whether an
        option is on the command line, by its parameter's name."""
        values = {name: options.take(given, is_given) for name, options in self._inside().items()
                  if name not in self.leave_out}
        preset = given.pop(f"{self.prefix}preset") if self.presets else None
        for each in fields(self.default):
            if each.name not in (*values, *self.leave_out):
                name = f"{self.prefix}{each.name}"
                value = given.pop(name)
                if preset is None or is_given(name):
                    values[each.name] = value
        return replace(self.default if preset is None else self.presets[preset], **values)


def _explained(parser: Callable[[str], Any] | None) -> Callable[[str], Any] | None:
    """A parser whose InputError is one of the command line's."""
    if parser is None:
        return None

    def parse(text: str) -> Any:
        try:
            return parser(text)
        except InputError as error:
            raise typer.BadParameter(f"{error}.") from error

    return parse


def options_of(
    kind: type, *, prefix: str = "", panel: str | None = None, leave_out: Collection[str] = (),
) -> Callable[[Verb], Verb]:
    """Decorate a verb of which one parameter is a dataclass `kind`: its fields become options.

    They take the parameter's place, and the verb is called with the dataclass that they make. A
    field says what it is by metadata={"help": ...}, and what its option is called, where that is
    not its name, by "option"; "parser" makes its value of the option's text, and "text" the text
    of its default. A field that is a dataclass says by "prefix" what stands before the names of its
    fields, and by "presets" which values have names: an option PREFIXpreset takes one of them.

    prefix: before the options' names. panel: the title that the help shows them under. leave_out:
    fields that keep their defaults.
    """
    options = _Options(kind(), prefix, panel, leave_out)

    def decorate(verb: Verb) -> Verb:
        signature = inspect.signature(verb)
        place = next(p.name for p in signature.parameters.values() if p.annotation is kind)
        parameters: list[inspect.Parameter] = []
        for each in signature.parameters.values():
            if each.name == place:
                parameters += options.parameters()
            else:  # by keyword, as typer gives it: then one with a default may come before others
                parameters.append(each.replace(kind=inspect.Parameter.KEYWORD_ONLY))
        parameters.append(inspect.Parameter(
            "context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context))

        def with_options(context: typer.Context, **given: Any) -> None:
            def is_given(name: str) -> bool:
                source = context.get_parameter_source(name)
                return source is not None and source.name != "DEFAULT"

            made = options.take(given, is_given)
            verb(**given, **{place: made})

        with_options.__name__, with_options.__doc__ = verb.__name__, verb.__doc__
        with_options.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=parameters)
        with_options.__annotations__ = {each.name: each.annotation for each in parameters}
        return with_options

    return decorate
