"""The folder of a prepared data set: table, images and record, there as a whole or not at all."""

import csv
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from scrd_fast.data.layouts.table import COLUMNS
from scrd_fast.data.prepare.download import Entry
from scrd_fast.errors import OutputError
from scrd_fast.files import check_writable, writing
from scrd_fast.progress import Progress

TABLE, RECORD, IMAGES = "data.csv", "prepared.json", "images"
# Another file system, one without hard links, a file of another owner, too many links.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def check_free(out: Path) -> None:
    """Raise OutputError unless `out` is not there, or an empty folder, and can be written."""
    check_writable(out, "out", folder=True)
    with writing(out):
        if out.is_dir() and any(out.iterdir()):
            raise OutputError(f"{out}: expected no such folder yet or an empty one, got one with"
                              " files in it")


def write_folder(
    source: Path, out: Path, entries: Sequence[Entry], record: Mapping[str, Any],
    progress: Progress,
) -> str:
    """Write all into a sibling of `out` that becomes `out` at the end; tells links and copies.

    The images are links so that they need no space, and hard ones so that the folder may be moved
    and stays whole without the download.
    """
    with writing(out):
        real = Path(os.path.realpath(out))
        real.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".scrd-", suffix=".part", dir=real.parent))
        try:
            copied = 0
            for number, entry in enumerate(entries, start=1):
                copied += _put(source / entry.path, temporary / IMAGES / entry.path)
                progress(number, len(entries), "linking images")
            told = (f"{len(entries)} images are in {IMAGES}/: {len(entries) - copied} hard links"
                    f" to those of the download, {copied} copies")
            _write_table(temporary / TABLE, entries)
            values = {**record, "images": {"links": len(entries) - copied, "copies": copied}}
            (temporary / RECORD).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            for name in (TABLE, RECORD):
                with open(temporary / name, "rb+") as file:
                    os.fsync(file.fileno())
            # As one that was made with the umask, which cannot be asked for without setting it.
            temporary.chmod(stat.S_IMODE((temporary / IMAGES).stat().st_mode))
            os.rename(temporary, real)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return told


def _put(image: Path, place: Path) -> bool:
    """Link an image, or copy it where it cannot be linked; tells whether it is a copy."""
    place.parent.mkdir(parents=True, exist_ok=True)
    real = os.path.realpath(image)  # a link to a symbolic link would break with it
    try:
        os.link(real, place)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(real, place)
        return True
    return False


def _write_table(path: Path, entries: Sequence[Entry]) -> None:
    """As UTF-8, but for names of files that are not: these stay what they are, byte for byte."""
    with path.open("wb") as file:
        def write(line: str) -> None:
            text = line.removesuffix("\r\n") + "\n"
            file.write(text.encode(errors="surrogateescape"))

        # With this terminator both of its characters are quoted where they are part of a name.
        table = csv.writer(SimpleNamespace(write=write), lineterminator="\r\n")
        table.writerow(COLUMNS)
        for each in entries:
            table.writerow([(Path(IMAGES) / each.path).as_posix(), each.label, "",
                            each.patient or "", each.split, each.group if each.label else ""])
