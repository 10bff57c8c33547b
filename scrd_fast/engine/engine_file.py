"""The engine file, model.scrd: an uncompressed zip that any tool can list.

Members: `manifest.json` (JSON, describes everything else and lists the SHA-256 of every other
member), `manifest.sha256` (its digest in hexadecimal), `network.onnx` (the portable graph),
`golden.safetensors` (probe images with the reference's scores and maps), `quantisation.json` for 8
bits, and what the backend stores for itself (`Backend.members`). The zip's comment is the SHA-256
of all bytes before it, so one flipped byte anywhere is found. There is no pickle; members that are
unlisted, missing or there twice are refused.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from scrd_fast.engine.manifest import Manifest, read_manifest
from scrd_fast.errors import EngineFileError
from scrd_fast.files import as_path, atomic_write

NETWORK, GOLDEN = "network.onnx", "golden.safetensors"
_MANIFEST, _DIGEST = "manifest.json", "manifest.sha256"
_COMMENT_LENGTH = 64


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(manifest: Manifest) -> bytes:
    return json.dumps(asdict(manifest), indent=1, sort_keys=True).encode()


def manifest_digest(manifest: Manifest) -> str:
    """The SHA-256 of `manifest.json`, which stands for the whole file."""
    return _sha256(_text(manifest))


def write_engine_file(
    path: str | os.PathLike[str], manifest: Manifest, members: Mapping[str, bytes]
) -> Path:
    """Write the file atomically; the digests of `members` are put into the manifest."""
    path = Path(path)
    write_listed(path, manifest, members)
    return path


def write_listed(path: Path, manifest: Manifest, members: Mapping[str, bytes]) -> Manifest:
    """The same; returns the manifest as it is in the file."""
    manifest = replace(manifest, members={n: _sha256(data) for n, data in members.items()})
    text = _text(manifest)
    everything = {_MANIFEST: text, _DIGEST: _sha256(text).encode(), **members}
    with atomic_write(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in everything.items():
                # A fixed date: the same content gives the same bytes.
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
            archive.comment = b"0" * _COMMENT_LENGTH
        with open(temporary, "rb+") as file:
            size = os.fstat(file.fileno()).st_size - _COMMENT_LENGTH
            digest = hashlib.sha256()
            while block := file.read(min(1 << 20, size - file.tell())):
                digest.update(block)
            file.seek(size)
            file.write(digest.hexdigest().encode())
    return manifest


def read_engine_file(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, bytes]]:
    """Manifest and members, every digest checked; raises EngineFileError with one clear line."""
    path = as_path(path, "path")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineFileError(
            f"{path}: expected an engine file, got {error.strerror}; build one with:"
            " scrd-fast build CHECKPOINT"
        ) from error
    if not data.startswith(b"PK"):
        raise EngineFileError(f"{path}: expected an engine file (.scrd), got another kind of file")
    if _sha256(data[:-_COMMENT_LENGTH]).encode() != data[-_COMMENT_LENGTH:]:
        raise EngineFileError(f"{path}: damaged or truncated: its digest does not match")
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            if any(m.compress_type != zipfile.ZIP_STORED for m in archive.infolist()):
                raise EngineFileError(f"{path}: refused: expected uncompressed members")
            names = archive.namelist()
            contents = {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OSError) as error:
        raise EngineFileError(f"{path}: not a readable zip ({error})") from error
    if len(set(names)) != len(names):
        raise EngineFileError(f"{path}: refused: a member is there twice ({sorted(names)})")
    manifest = _read_manifest(path, contents.pop(_MANIFEST, b""), contents.pop(_DIGEST, b""))
    if set(contents) != set(manifest.members):
        raise EngineFileError(
            f"{path}: refused: expected the members {sorted(manifest.members)},"
            f" got {sorted(contents)}"
        )
    for name, content in contents.items():
        if _sha256(content) != manifest.members[name]:
            raise EngineFileError(f"{path}: {name}: its digest does not match the manifest")
    return manifest, contents


def _read_manifest(path: Path, text: bytes, digest: bytes) -> Manifest:
    if not text or _sha256(text).encode() != digest:
        raise EngineFileError(f"{path}: {_MANIFEST} is missing or does not match its digest")
    try:
        return read_manifest(json.loads(text))
    except EngineFileError as error:
        raise EngineFileError(f"{path}: {error}") from error
    except (ValueError, RecursionError) as error:  # what JSON raises, and InputError
        raise EngineFileError(f"{path}: {_MANIFEST} does not fit: {error}") from error


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of an engine file as JSON-ready values."""
    return asdict(read_engine_file(path)[0])
