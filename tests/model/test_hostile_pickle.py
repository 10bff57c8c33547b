"""model.published_pickle: nothing in a file is run, and what is wrong with it is said."""

import io
import os
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import nn

from scrd_fast.errors import CheckpointError, InputError
from scrd_fast.model.published_pickle import convert_published
from tests.model.published_files import light_state, refusal, write_archive

# ---- Names that are refused ----


def call(module: str, name: str, argument: str) -> bytes:
    """A pickle that calls module.name(argument)."""
    return b"c%s\n%s\n(V%s\ntR." % (module.encode(), name.encode(), argument.encode())


@pytest.mark.parametrize("name", [
    f"{os.system.__module__}:system", "os:system", "nt:system", "posix:execv", "subprocess:Popen",
    "builtins:exec", "__builtin__:eval", "builtins:getattr", "builtins:__import__",
    "builtins:open", "builtins:Exception", "builtins:bytearray", "sys:exit", "runpy:run_path",
    "__builtin__:Exception",
    "importlib:import_module", "socket:socket", "shutil:rmtree", "ctypes:CDLL", "types:CodeType",
    "functools:partial", "operator:attrgetter", "pickle:loads", "pathlib:Path",
    "collections:defaultdict", "torch:load", "torch.hub:load", "torch.jit:load", "torch:Tensor",
    "torch.nn.functional:relu", "torch.nn.modules.module:_addindent", "torch.utils.data:Dataset",
    "torch.storage:_load_from_bytes", "torch._utils:_rebuild_tensor_v3",
    "numpy.core.multiarray:scalar", "models.resnet:build", "__main__:main", "models.net:Net.run",
    "models.net:<locals>",
])
def test_names_are_refused(tmp_path, name):
    path = write_archive(tmp_path / "bad.pth", call(*name.split(":"), "echo"))
    assert f"refused: the pickle names {name.replace(':', '.')}, " in refusal(path)


class Harmful:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])  # GLOBAL, STACK_GLOBAL
@pytest.mark.parametrize("function", [os.system, eval, os.mkdir])
def test_calls_have_no_effect(tmp_path, function, protocol):
    marker = tmp_path / "marker"
    argument = {os.system: f"echo > {marker}", eval: f"open({str(marker)!r}, 'w')",
                os.mkdir: str(marker)}[function]
    harmful = Harmful(function, argument)
    parameter = nn.Parameter(torch.ones(1))
    parameter.harm = harmful  # travels as the state of the parameter
    for saved in (harmful, {"state_dict": {"mlp.bias": [harmful]}}, {harmful: 1}, parameter):
        torch.save(saved, tmp_path / "bad.pth", pickle_protocol=protocol)
        assert f".{function.__name__}, " in refusal(tmp_path / "bad.pth")
    assert not marker.exists()
    torch.load(tmp_path / "bad.pth", weights_only=False)
    assert marker.exists()  # the file does harm where it is believed


def test_names_that_would_break_the_line_are_escaped(tmp_path):
    name = "syst\x1b[31m\nem"
    data = b"\x80\x04\x8c\x05posix\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    path = write_archive(tmp_path / "bad.pth", data)
    assert r"posix.syst\x1b[31m\nem, " in refusal(path)


def test_the_registry_of_extension_codes_is_not_reached(tmp_path):
    path = write_archive(tmp_path / "bad.pth", b"\x80\x02\x82\x01)R.")
    assert "opcode EXT1" in refusal(path)


NAMED = {"record": b"cmodels\nNet\n", "tensor": b"ctorch._utils\n_rebuild_tensor_v2\n",
         "parameter": b"ctorch._utils\n_rebuild_parameter\n",
         "ordered": b"ccollections\nOrderedDict\n", "set": b"c__builtin__\nset\n",
         "size": b"ctorch\nSize\n", "dtype": b"ctorch\nFloatStorage\n"}


def test_what_the_pickle_names_cannot_be_changed(convert, tmp_path):
    for named in NAMED.values():
        for state in (b"}V__new__\nI1\ns", b"N}V__new__\nI1\ns\x86"):  # a dict, and slots
            refusal(write_archive(tmp_path / "bad.pth", b"\x80\x02" + named + state + b"b."))
    convert(light_state("resnet18"))


def test_the_state_of_objects_is_not_set_as_attributes(tmp_path):
    for name in ("record", "ordered"):
        data = b"\x80\x02" + NAMED[name] + b")RN}V__class__\nI1\ns\x86b."
        refusal(write_archive(tmp_path / "bad.pth", data))
    data = b"\x80\x02" + NAMED["record"] + b")RI1\nb."
    assert "expected a dict as an object's state, got int" in refusal(
        write_archive(tmp_path / "bad.pth", data))


# ---- Tensors and parts out of bounds ----


def tensor_pickle(
    size: tuple[object, ...] = (2, 3), stride: tuple[object, ...] = (3, 1), offset: object = 0,
    numel: object = 6, key: object = "0", change: bool = False,
) -> bytes:
    """The pickle of one float32 tensor with any numbers in it."""

    class Named:
        def __init__(self, *arguments: object) -> None:
            self.arguments = arguments

        def __reduce__(self) -> tuple[object, ...]:
            state = ({"offset": 9},) if change else ()
            return (torch._utils._rebuild_tensor_v2, self.arguments, *state)

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if isinstance(obj, torch.UntypedStorage):
                return "storage", torch.FloatStorage, key, "cpu", numel
            return None

    stream = io.BytesIO()
    tensor = Named(torch.UntypedStorage(0), offset, size, stride, False, OrderedDict())
    Pickler(stream, protocol=2).dump({"mlp.bias": tensor})
    return stream.getvalue()


@pytest.mark.parametrize("wrong", [
    {"size": (2, 4)}, {"size": (-2, 3)}, {"size": (2,)}, {"size": (2, "3")}, {"size": (2.0, 3)},
    {"size": (True, 3)}, {"size": (10**30, 3)}, {"stride": (-3, 1)},
    {"stride": (4, 1)}, {"stride": (3, 2**62)}, {"stride": "31"}, {"offset": 1}, {"offset": -1},
    {"offset": None}, {"numel": 7}, {"numel": -6}, {"numel": 10**30}, {"numel": "6"}, {"key": "1"},
    {"key": "../data.pkl"}, {"key": 0}, {"change": True},
], ids=str)
def test_tensors_stay_within_their_storage(tmp_path, wrong):
    storages = {"0": struct.pack("<6f", *range(6))}
    right = write_archive(tmp_path / "right.pth", tensor_pickle(), storages)
    assert torch.equal(torch.load(right)["mlp.bias"], torch.arange(6.0).reshape(2, 3))
    assert "nearest to" in refusal(right)  # well-formed, though it is no model
    message = refusal(write_archive(tmp_path / "wrong.pth", tensor_pickle(**wrong), storages))
    assert "nearest to" not in message


def test_a_number_too_long_to_print(tmp_path):
    storages = {"0": struct.pack("<6f", *range(6))}
    data = tensor_pickle(size=(0, 10**6000))
    assert "malformed size" in refusal(write_archive(tmp_path / "bad.pth", data, storages))


def test_a_tensor_without_a_storage(tmp_path):
    data = b"\x80\x02" + NAMED["tensor"] + b"((I0\nI1\nttR."
    refusal(write_archive(tmp_path / "bad.pth", data))
    data = b"\x80\x02" + NAMED["parameter"] + b"(I0\ntR."
    assert "expected a tensor as a parameter" in refusal(write_archive(tmp_path / "b.pth", data))


def test_modules_without_end(tmp_path):
    loop, double, deep = nn.Module(), nn.Module(), nn.Module()
    loop._modules["again"] = loop
    top = double
    for _ in range(40):  # 2^40 parts
        inner = nn.Module()
        top._modules.update(a=inner, b=inner)
        top = inner
    deep._modules["a" * 2000] = nn.ReLU()
    for module in (loop, double, deep):
        torch.save(module, tmp_path / "bad.pth")
        assert "too many parts, or they are nested too deep" in refusal(tmp_path / "bad.pth")


def test_memo_numbers_that_would_fill_the_memory(tmp_path):
    data = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
    assert "more objects than it has" in refusal(write_archive(tmp_path / "bad.pth", data))


@pytest.mark.slow
def test_damaged_pickles_are_refused_and_raise_nothing_else(tmp_path):
    torch.save({"state_dict": nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))},
               tmp_path / "small.pth")
    with zipfile.ZipFile(tmp_path / "small.pth") as file:
        data = file.read("small/data.pkl")
        storages = {str(i): file.read(f"small/data/{i}") for i in range(6)}
    chance = random.Random(0)
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(data))] = chance.randrange(256)
        cut = len(data) if chance.random() < 0.8 else chance.randrange(len(data))
        refusal(write_archive(tmp_path / "bad.pth", bytes(damaged[:cut]), storages))


# ---- Files that torch.save does not make ----


def test_files_of_another_kind(tmp_path):
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "text.pth").write_text("no checkpoint")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    torch.save({"a": 1}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name, expected in {"foreign.zip": "foreign zip", "empty.pth": "another kind of file",
                           "text.pth": "another kind of file", "bare.pth": "save it again",
                           "old.pth": "save it again with a current torch",
                           "absent.pth": "no such file", ".": "no such file"}.items():
        with pytest.raises(CheckpointError, match=expected):
            convert_published(tmp_path / name, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_source_is_not_overwritten(tmp_path):
    source = tmp_path / "official.pth"
    source.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"^out: expected another file"):
        convert_published(source, tmp_path / "." / "official.pth")
    assert source.read_bytes() == b"precious"


def test_truncated_files(tmp_path):
    torch.save(light_state("resnet18"), tmp_path / "whole.pth")
    data = (tmp_path / "whole.pth").read_bytes()
    for kept in (5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pth").write_bytes(data[:kept])
        assert "truncated" in refusal(tmp_path / "cut.pth")


def test_a_damaged_record(tmp_path):
    state = light_state("resnet18") | {"mlp.bias": torch.full((3,), 1.25)}
    torch.save(state, tmp_path / "damaged.pth")
    data = (tmp_path / "damaged.pth").read_bytes()
    values = struct.pack("<3f", 1.25, 1.25, 1.25)
    assert data.count(values) == 1
    (tmp_path / "damaged.pth").write_bytes(data.replace(values, struct.pack("<3f", 1, 2, 3)))
    assert "Bad CRC-32" in refusal(tmp_path / "damaged.pth")


def test_records_that_torch_does_not_write(tmp_path):
    with zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 20))
    assert "expected an uncompressed record" in refusal(tmp_path / "small.pth")
    write_archive(tmp_path / "large.pth", bytes((16 << 20) + 1))
    assert "at most 16777216 bytes" in refusal(tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "big.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        file.writestr("archive/byteorder", "big")
    assert "another byte order" in refusal(tmp_path / "big.pth")
    with zipfile.ZipFile(tmp_path / "long.pth", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        file.getinfo("archive/data.pkl").file_size += 8  # as the directory of the zip will say
    assert "data.pkl: truncated or damaged" in refusal(tmp_path / "long.pth")
