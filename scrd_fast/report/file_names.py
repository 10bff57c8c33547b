"""Names of files that are made of what was scored."""

from pathlib import Path

from scrd_fast.data.layouts.tree import strip_suffix

_FORBIDDEN = '<>:"/\\|?*'  # on one system or another


def clean(text: str) -> str:
    """The text as part of a file's name: what is no printable character, or is not allowed on some
    system, becomes "_"."""
    return "".join(each if each.isprintable() and each not in _FORBIDDEN else "_" for each in text)


def name_after(path: Path) -> str:
    """What is made of a file is called as it is, without an image's suffix, cleaned, and without
    the dots of a hidden file. It may be empty, and as long as any name."""
    return clean(strip_suffix(path.name)).lstrip(".")
