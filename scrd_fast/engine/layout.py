"""Where an uncompressed zip has the contents of its members: they are read where they lie.

Only the plainest zip is taken (https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.7):
members one behind the other, none of them compressed, encrypted or in pieces, and at the end a
comment that is a digest.
"""

import hashlib
import struct
import zipfile
from collections.abc import Iterable
from typing import IO

from scrd_fast.errors import EngineFileError

COMMENT_LENGTH = 64  # SHA-256 in hexadecimal
_HEADER = struct.Struct("<4s2xHH16xHH")  # signature, flags, method, lengths of name and extra field
_SIGNATURE = b"PK\x03\x04"
_UTF8_NAME = 0x800  # the only flag that a plain member may have


def read_layout(file: IO[bytes], data: memoryview) -> dict[str, slice]:
    """The places of the members in `data`, which is all of `file`; raises EngineFileError."""
    try:
        with zipfile.ZipFile(file) as archive:
            listed, comment, end = archive.infolist(), archive.comment, archive.start_dir
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError) as error:
        raise EngineFileError(f"damaged or truncated: not a readable zip ({error})") from error
    if len(comment) != COMMENT_LENGTH or data[-COMMENT_LENGTH:] != comment:
        raise EngineFileError("damaged or truncated: it does not end in its digest")
    names = [member.filename for member in listed]
    if len(set(names)) != len(names):
        raise EngineFileError(f"refused: a member is there twice ({sorted(names)})")
    places: dict[str, slice] = {}
    at = 0
    for member in listed:
        header = data[at : at + _HEADER.size]
        if member.header_offset != at or len(header) < _HEADER.size:
            raise EngineFileError(f"not a readable zip (the place of {member.filename!r})")
        signature, flags, method, name, extra = _HEADER.unpack(header)
        begin = at + _HEADER.size + name + extra
        at = begin + member.file_size
        if method != zipfile.ZIP_STORED or member.compress_type != zipfile.ZIP_STORED:
            raise EngineFileError("refused: expected uncompressed members")
        if signature != _SIGNATURE or flags & ~_UTF8_NAME or at > end or (
                member.compress_size != member.file_size):
            raise EngineFileError(f"not a readable zip (the header of {member.filename!r})")
        places[member.filename] = slice(begin, at)
    return places


def digest_around(data: memoryview, places: Iterable[slice]) -> str:
    """The SHA-256 of all but what lies in these places, which rise, and the comment."""
    digest = hashlib.sha256()
    at = 0
    for place in places:
        digest.update(data[at : place.start])
        at = place.stop
    digest.update(data[at : len(data) - COMMENT_LENGTH])
    return digest.hexdigest()
