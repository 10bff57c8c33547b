"""Pages made of the templates, style and scripts in `page/`: one file that asks for nothing else.

A page says by its content security policy that nothing is loaded and that no script or style runs
but its own, which it knows by their SHA-256.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scrd_fast.errors import MissingExtra
from scrd_fast.files import atomic_write

_PAGE = Path(__file__).parent / "page"
# In this order they are one script.
SCRIPTS = ("data.js", "statistics.js", "threshold.js", "plots.js", "pictures.js", "gallery.js",
           "viewer.js", "tables.js")


@dataclass(frozen=True)
class Table:
    """A table for a page. rows: cells, each a text, a number or None; chosen: the numbers of the
    rows that are marked."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    chosen: frozenset[int] = frozenset()

    @property
    def numeric(self) -> frozenset[int]:
        """The columns of numbers alone, whose cells end in line."""
        columns = [[value for value in column if value is not None]
                   for column in zip(*self.rows, strict=True)]
        return frozenset(i for i, values in enumerate(columns) if values and all(
            isinstance(value, int | float) for value in values))


def check_jinja2() -> None:
    """Raise MissingExtra where it is not installed."""
    if not find_spec("jinja2"):
        raise MissingExtra("report: expected jinja2, got none; pip install 'scrd-fast[report]'")


def write_page(out: str | os.PathLike[str], template: str, data: Any = None, **values: Any) -> None:
    """Fill a template and write the page. data: JSON-ready values for the scripts, without which
    the page has none. Raises MissingExtra, OutputError."""
    text = render_page(template, data, **values)
    with atomic_write(out) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def render_page(template: str, data: Any = None, **values: Any) -> str:
    """The text of a page, see `write_page`; all values are escaped."""
    check_jinja2()
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(loader=FileSystemLoader(_PAGE), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["cell"] = format_cell
    style = (_PAGE / "style.css").read_text("utf-8")
    script = "" if data is None else "\n".join(
        (_PAGE / name).read_text("utf-8") for name in SCRIPTS)
    policy = (f"default-src 'none'; img-src data:; style-src {_hash(style)};"
              f" script-src {_hash(script)}; base-uri 'none'; form-action 'none'")
    return environment.get_template(template).render(
        values, style=Markup(style), script=Markup(script), policy=policy,
        data=Markup(_escape(data)))


def _hash(text: str) -> str:
    """How a policy names a script or style, none where there is no text."""
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'" if text else "'none'"


def _escape(data: Any) -> str:
    """JSON in ASCII that ends no element and begins none."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")


def format_cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "–"
    if isinstance(value, tuple | list):
        return ", ".join(map(format_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
