"""Import of checkpoints that the published code saved with torch.save: state dicts, whole modules.

Nothing that such a file names is imported or called. A pickle can only name things; here every
name becomes plain data (a container, a dtype, an inert record, a description of a tensor) or is
refused. Everything that the pickle can reach refuses attributes (BUILD), so that a file cannot
change this process either. Weights are read after that, for the tensors that the model has.
"""

import io
import os
import pickle
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor

from scrd_fast.errors import CheckpointError
from scrd_fast.files import as_path, check_writable
from scrd_fast.model.backbones import BACKBONES
from scrd_fast.model.checkpoint import Checkpoint, ModelConfig, load_weights, save_checkpoint
from scrd_fast.model.published import rename_published
from scrd_fast.model.scrd import SCRD, model_without_weights
from scrd_fast.spec import DecodingRule, ScoringSpec

# Far above the whole published module: a pickle under 1 MiB, about 1000 parts, short names.
_MAX_PICKLE_BYTES = 16 << 20
_MAX_PARTS = 20_000
_MAX_PREFIX = 1000
_MAX_COUNT = 1 << 48

_NESTED_UNDER = ("state_dict", "model_state_dict", "model", "net")
_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, struct.error)
_CLASS_NAME = re.compile(r"[A-Z]\w*(\.[A-Z]\w*)*", re.ASCII)


class _Refused(Exception):
    """What is wrong with the file, without its path."""


def convert_published(
    source: str | os.PathLike[str], out: str | os.PathLike[str], *,
    decoding: DecodingRule | None = None,
) -> Path:
    """Write the scrd_fast checkpoint `out` from a published one; returns its path.

    source: a state dict (plain, or under a key such as "state_dict") or a whole module, saved by
    torch.save, with or without DataParallel; the backbone follows from its shapes. decoding: how
    files become the images that it was trained on, DecodingRule() if None. Raises
    CheckpointError naming the file and what is wrong with it, InputError where `out` is the source,
    OutputError where `out` cannot be written.
    """
    path, target = as_path(source, "source"), as_path(out, "out")
    check_writable(target, "out", inputs=[path])
    try:
        model = _read_model(path)
    except _Refused as error:
        raise CheckpointError(f"{path}: {error}") from error
    # Published scores use no scale weights: their head was never trained.
    spec = ScoringSpec(input_size=256, weighting="none", reduction="mean", blur_sigma=4.0,
                       decoding=decoding or DecodingRule())
    config = ModelConfig(model.backbone, teacher="published checkpoint")
    checkpoint = Checkpoint(model, spec, config, metrics={"converted_from": path.name})
    return save_checkpoint(checkpoint, target)


def _read_model(path: Path) -> SCRD:
    with _open_zip(path) as file:
        archive = _Archive(file)
        described = _rename(_find_state(archive.load()))
        model = model_without_weights(_detect_backbone(described))
        tensors = {name: _weight(archive, name, described.get(name), wanted.dtype)
                   for name, wanted in model.state_dict().items()}
    load_weights(model, tensors, str(path))
    return model.eval()


def _shown(text: str) -> str:
    """Text from a file as one short printable line."""
    return ascii(text)[1:-1][:200]


# ---- The names that a pickle may use, and what they become ----


class _Storage(NamedTuple):
    """The record of the archive that holds `numel` values of `dtype`."""

    record: zipfile.ZipInfo
    dtype: torch.dtype
    numel: int


class _Sealed:
    """Base of what a pickle can name: the opcode BUILD would set attributes, here it fails.

    It fails on the class too, where Python finds this method and no instance to bind it to.
    """

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        raise _Refused("refused: the pickle changes a tensor after it is made")


class _Record(_Sealed):
    """An object of a class that the pickle names: its state, without the class."""

    __slots__ = ("state",)
    state: dict[Any, Any]

    def __new__(cls, *args: object, **kwargs: object) -> "_Record":
        record = super().__new__(cls)
        record.state = {}
        return record

    def __setstate__(self, state: object) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.state.update(part)
            elif part is not None:
                raise _Refused(f"expected a dict as an object's state, got {type(part).__name__}")


class _OrderedDict(_Sealed, dict[Any, Any]):
    """An OrderedDict without the attribute that torch gives it (versions of the modules)."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _TensorRef(_Sealed):
    """Where a tensor's values lie: a strided view of one storage, within its bounds."""

    __slots__ = ("offset", "size", "storage", "stride")
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __new__(
        cls, storage: object, offset: object, size: object, stride: object, *unused: object
    ) -> "_TensorRef":
        if not (isinstance(storage, _Storage) and _is_count(offset) and _is_shape(size)
                and _is_shape(stride) and len(size) == len(stride)):
            raise _Refused("a tensor has no storage, or a negative or malformed size, stride or"
                           " offset")
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if 0 not in size and end > storage.numel:
            raise _Refused(f"a tensor of shape {_shown(str(size))} reaches value {end} of a storage"
                           f" of {storage.numel}")
        ref = super().__new__(cls)
        ref.storage, ref.offset, ref.size, ref.stride = storage, offset, size, stride
        return ref


class _Parameter(_Sealed):
    """Stands for the functions that make a tensor a parameter; gives the tensor itself."""

    __slots__ = ()

    def __new__(cls, tensor: object, *unused: object) -> _TensorRef:  # type: ignore[misc]
        if not isinstance(tensor, _TensorRef):
            raise _Refused(f"expected a tensor as a parameter, got {type(tensor).__name__}")
        return tensor


_KNOWN: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): _OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,  # the names of pickle protocol 2
    ("__builtin__", "frozenset"): frozenset,
    ("torch", "Size"): tuple,
    ("torch", "device"): _Record,
    ("torch._utils", "_rebuild_tensor_v2"): _TensorRef,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _Parameter,
    ("torch.storage", "UntypedStorage"): torch.uint8,
    **{("torch", storage): dtype for storage, dtype in _DTYPES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES.values()},
}


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_COUNT


def _is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(map(_is_count, value))


def _is_record_class(module: str, name: str) -> bool:
    """Whether a name may be a network's class: torch.nn's modules, or a class of foreign code.

    Where the published code's classes live depends on the folder it was run from, so any module
    may hold one except those of Python itself and of torch. Classes start with a capital.
    """
    if not _CLASS_NAME.fullmatch(name):
        return False
    if module.startswith(("torch.nn.modules.", "torch.nn.parallel.")):
        return True
    return module.partition(".")[0] not in sys.stdlib_module_names | {"torch", "__builtin__"}


class _Unpickler(pickle.Unpickler):
    """Builds plain data; `records` are the archive's, `root` its folder."""

    def __init__(self, data: bytes, root: str, records: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(io.BytesIO(data))
        self._root, self._records = root, records

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is not None:
            return known
        if _is_record_class(module_name, global_name):
            return _Record
        name = _shown(f"{module_name}.{global_name}")
        raise _Refused(f"refused: the pickle names {name}, which no published model needs (nothing"
                       " was run); if you trust the file, save the model's state dict alone")

    def persistent_load(self, pid: Any) -> _Storage:
        """('storage', dtype, key, device, number of values) -> the storage, checked."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise _Refused("expected a storage of torch.save, got another persistent id")
        _, dtype, key, _, numel = pid
        record = self._records.get(f"{self._root}/data/{key}") if isinstance(key, str) else None
        if record is None or not isinstance(dtype, torch.dtype) or not _is_count(numel):
            raise _Refused("a storage has no record in the file, or a malformed type or length")
        if record.file_size != numel * dtype.itemsize:
            raise _Refused(
                f"storage {_shown(key)}: expected {numel * dtype.itemsize} bytes, got"
                f" {record.file_size}"
            )
        return _Storage(record, dtype, numel)


def _check_opcodes(data: bytes) -> None:
    """Refuse a stream that is cut short, or that Python's unpickler would trust too far."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if opcode.name.startswith("EXT"):  # a process-wide registry, past find_class
            raise _Refused(f"refused: the pickle uses the opcode {opcode.name}")
        # The unpickler allocates room up to the largest memo index.
        if opcode.name.endswith("PUT") and isinstance(argument, int) and argument > count:
            raise _Refused("refused: the pickle numbers more objects than it has")


# ---- The file ----


def _open_zip(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise _Refused("expected a file made by torch.save, got no such file")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic[:1] == b"\x80":
            raise _Refused("expected torch.save's zip format, got a bare pickle (the format before"
                           " torch 1.6); save it again with a current torch")
        if magic != b"PK\x03\x04":
            raise _Refused("expected a file made by torch.save, got another kind of file")
        return zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise _Refused(f"expected a whole file made by torch.save, got one that is truncated or"
                       f" cannot be read ({_shown(str(error))})") from error


class _Archive:
    """The records of a zip file made by torch.save: NAME/data.pkl and NAME/data/KEY."""

    def __init__(self, file: zipfile.ZipFile) -> None:
        self._file = file
        self._records = {record.filename: record for record in file.infolist()}
        roots = [name.removesuffix("/data.pkl") for name in self._records
                 if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _Refused("expected a file made by torch.save, got a foreign zip file")
        self._root = roots[0]

    def load(self) -> object:
        """What the pickle describes, as plain data."""
        order = self._records.get(f"{self._root}/byteorder")
        if order is not None and self._read(order, len("little")) != b"little":
            raise _Refused("expected little-endian numbers, got another byte order")
        data = self._read(self._records[f"{self._root}/data.pkl"], _MAX_PICKLE_BYTES)
        try:
            _check_opcodes(data)
            return _Unpickler(data, self._root, self._records).load()
        except _Refused:
            raise
        except Exception as error:  # a malformed pickle can raise nearly anything
            reason = _shown(f"{type(error).__name__}: {error}")
            raise _Refused(f"its pickle is damaged or foreign ({reason})") from error

    def tensor(self, ref: _TensorRef) -> Tensor:
        """The values of a non-empty tensor, in the dtype of its storage."""
        data = self._read(ref.storage.record, ref.storage.record.file_size)
        flat = torch.frombuffer(bytearray(data), dtype=ref.storage.dtype)
        return flat.as_strided(ref.size, ref.stride, ref.offset)

    def _read(self, record: zipfile.ZipInfo, limit: int) -> bytes:
        # torch.save compresses nothing; a compressed record could unpack to any size.
        if record.compress_type != zipfile.ZIP_STORED or record.file_size > limit:
            raise _Refused(f"{_shown(record.filename)}: expected an uncompressed record of at most"
                           f" {limit} bytes, got {record.file_size}")
        try:
            data = self._file.read(record)
        except _ZIP_ERRORS as error:
            raise _Refused(f"truncated or damaged ({_shown(str(error))})") from error
        if len(data) != record.file_size:
            raise _Refused(f"{_shown(record.filename)}: truncated or damaged")
        return data


# ---- From plain data to the model's weights ----


def _find_state(loaded: object) -> dict[str, _TensorRef]:
    """The tensors by their published names, wherever the file keeps them."""
    if isinstance(loaded, dict):
        loaded = next((loaded[key] for key in _NESTED_UNDER if key in loaded), loaded)
    if isinstance(loaded, _Record):
        loaded = _module_state(loaded)
    if not isinstance(loaded, dict):
        raise _Refused(f"expected a state dict or a module, got {type(loaded).__name__}")
    for name, value in loaded.items():
        if not (isinstance(name, str) and isinstance(value, _TensorRef)):
            key = _shown(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise _Refused(f"expected tensors by name, got {type(value).__name__} under {key}")
    return loaded


def _module_state(root: _Record) -> dict[str, object]:
    """What the module's state_dict() would hold, with the same names."""
    state: dict[str, object] = {}
    pending = [("", root)]
    parts = 0
    while pending:
        prefix, record = pending.pop()
        members = _members(record)
        parts += 1 + len(members)
        if parts > _MAX_PARTS or len(prefix) > _MAX_PREFIX:
            raise _Refused("refused: the module has too many parts, or they are nested too deep")
        for name, value in members.items():
            if isinstance(value, _Record):
                pending.append((f"{prefix}{name}.", value))
            elif value is not None:
                state[f"{prefix}{name}"] = value
    return state


def _members(record: _Record) -> dict[str, object]:
    """Parameters, persistent buffers and submodules of one module, by name."""
    groups = [record.state.get(key) for key in ("_parameters", "_buffers", "_modules")]
    transient = record.state.get("_non_persistent_buffers_set", set())
    members: dict[str, object] = {}
    for group in groups:
        if not isinstance(group, dict) or not isinstance(transient, set):
            raise _Refused("expected a module, got an object without its parts")
        members.update((name, value) for name, value in group.items() if name not in transient)
    if not all(isinstance(name, str) for name in members):
        raise _Refused("expected a module, got parts without a name")
    return members


def _rename(state: Mapping[str, _TensorRef]) -> dict[str, _TensorRef]:
    """The tensors by this package's names, without the parts that are never run."""
    described: dict[str, _TensorRef] = {}
    for name, ref in state.items():
        try:
            # DataParallel keeps the model as its submodule "module".
            ours = rename_published(name.removeprefix("module."))
        except KeyError as error:
            raise _Refused(f"{_shown(name)}: the published model has no such tensor") from error
        if ours in described:
            raise _Refused(f"{_shown(name)}: the tensor {ours} comes twice")
        if ours is not None:
            described[ours] = ref
    return described


def _detect_backbone(described: Mapping[str, _TensorRef]) -> str:
    """The backbone whose tensors these are; raises _Refused for the first that does not fit."""
    given = {name: ref.size for name, ref in described.items()}
    found = {}
    for backbone in BACKBONES:
        with torch.device("meta"):
            wanted = {name: tuple(t.shape) for name, t in SCRD(backbone).state_dict().items()}
        found[backbone] = list(_misfits(given, wanted))
    nearest = min(BACKBONES, key=lambda backbone: len(found[backbone]))
    if found[nearest]:
        raise _Refused(f"nearest to {nearest}, but {found[nearest][0]}"
                       f" ({len(found[nearest])} tensors differ)")
    return nearest


def _misfits(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    for name, shape in wanted.items():
        if name in given and given[name] != shape:
            yield f"{name}: expected {shape}, got {_shown(str(given[name]))}"
        elif name not in given and not _is_batch_count(name):
            yield f"{name} is missing"
    for name in given:
        if name not in wanted:
            yield f"{_shown(name)} is unknown"


def _is_batch_count(name: str) -> bool:
    """Whether this is a counter of BatchNorm, which older files lack and eval mode never reads."""
    return name.endswith(".num_batches_tracked")


def _weight(archive: _Archive, name: str, ref: _TensorRef | None, dtype: torch.dtype) -> Tensor:
    """The tensor in the model's dtype; zero for a missing count of batches."""
    if ref is None:
        return torch.zeros((), dtype=dtype)
    given = ref.storage.dtype
    if given.is_floating_point != dtype.is_floating_point:
        raise _Refused(f"{name}: expected {dtype}, got {given}")
    return archive.tensor(ref).to(dtype)
