"""model.published_pickle: published files become the same tensors; nothing in them is run."""

import io
import json
import os
import pickle
import random
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from scrd_fast.errors import CheckpointError, InputError, OutputError
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.model.published_pickle import convert_published
from scrd_fast.model.resnet import BACKBONES
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import ScoringSpec

GOLDEN = Path(__file__).parent.parent / "golden" / "published_state_dict_shapes.json"
UNUSED = ("encoder.layer4.", "encoder.fc.", "bn.conv4.", "bn.bn4.")
PUBLISHED_CODE = "models_published"

State = dict[str, Tensor]


def published_name(name: str) -> str:
    """The published code's name of a tensor of this package."""
    for ours, theirs in (("teacher.", "encoder."), ("bottleneck.blocks.", "bn.bn_layer."),
                         ("bottleneck.", "bn."), ("student.", "decoder."),
                         ("scale_head.linear.", "mlp.")):
        if name.startswith(ours):
            shortcut = "upsample." if ours == "student." else "downsample."
            return theirs + name[len(ours):].replace("shortcut.", shortcut)
    raise AssertionError(name)


def unused_state() -> State:
    """Parts that the published class owns but never runs; even NaN there does not matter."""
    return {"encoder.layer4.0.conv1.weight": torch.ones(4, 2, 1, 1),
            "encoder.fc.weight": torch.full((3, 5), float("nan")), "encoder.fc.bias": torch.ones(3),
            "bn.conv4.weight": torch.ones(2, 2, 1, 1), "bn.bn4.running_mean": torch.ones(2)}


def light_state(backbone: str) -> State:
    """Published names with tensors of the right shapes that all repeat a single value."""
    with torch.device("meta"):
        wanted = SCRD(backbone).state_dict()
    return {published_name(name): torch.ones((), dtype=t.dtype).expand(t.shape)
            for name, t in wanted.items()}


@pytest.fixture(scope="module")
def model() -> SCRD:
    torch.manual_seed(3)
    model = SCRD("resnet18").eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            nn.init.normal_(part.running_mean)
    return model


@pytest.fixture
def published(model: SCRD) -> State:
    return {published_name(k): v for k, v in model.state_dict().items()} | unused_state()


@pytest.fixture
def convert(tmp_path: Path) -> Callable[..., Path]:
    """Save an object with torch.save, convert the file, return the path of the result."""

    def run(saved: object, **options: object) -> Path:
        torch.save(saved, tmp_path / "published.pth", **options)
        return convert_published(tmp_path / "published.pth", tmp_path / "out.safetensors")

    return run


def assert_same_tensors(path: Path, model: SCRD) -> None:
    loaded = load_checkpoint(path).model.state_dict()
    assert loaded.keys() == model.state_dict().keys()
    for name, expected in model.state_dict().items():
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name], expected), name


def write_archive(path: Path, data: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """A file as torch.save lays it out, with any pickle and any storages."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
        for key, values in (storages or {}).items():
            file.writestr(f"archive/data/{key}", values)
    return path


def refusal(path: Path) -> str:
    """The message of the refusal; checks that it is one line and that nothing is written."""
    before = set(path.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert_published(path, path.parent / "out.safetensors")
    assert set(path.parent.iterdir()) == before
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 500
    return message


# ---- State dicts ----


def test_names_and_shapes_are_the_published_ones():
    shapes = {k: v for k, v in json.loads(GOLDEN.read_text()).items() if not k.startswith(UNUSED)}
    assert {k: list(t.shape) for k, t in light_state("wide_resnet50_2").items()} == shapes


def test_a_state_dict_becomes_the_same_tensors(model, published, convert):
    path = convert(OrderedDict(published))
    assert_same_tensors(path, model)
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.backbone == "resnet18"
    assert checkpoint.config.teacher == "published checkpoint"
    assert checkpoint.spec == ScoringSpec(weighting="none", reduction="mean", blur_sigma=4.0)
    assert checkpoint.training == {}
    assert checkpoint.metrics == {"converted_from": "published.pth"}


@pytest.mark.parametrize(("key", "prefix", "protocol"),
                         [("state_dict", "", 4), ("model", "module.", 5)])
def test_nested_and_data_parallel_state_dicts_of_any_protocol(convert, key, prefix, protocol):
    state = {prefix + name: value for name, value in light_state("resnet18").items()}
    saved = {"epoch": 7, "optimizer": {"lr": 1e-3, "betas": (0.5, 0.999)}, key: state}
    loaded = load_checkpoint(convert(saved, pickle_protocol=protocol)).model
    assert all(bool((p == 1).all()) for p in loaded.state_dict().values())


def test_dtypes_strides_offsets_and_missing_batch_counts(model, published, convert):
    state = {k: v for k, v in published.items() if not k.endswith("num_batches_tracked")}
    weight, bias = state["mlp.weight"], state["mlp.bias"]
    state["mlp.weight"] = weight.double().t().contiguous().t()  # column by column
    state["mlp.bias"] = torch.cat([torch.zeros(5), bias, torch.zeros(2)])[5:8]
    conv = state["encoder.conv1.weight"].half()
    state["encoder.conv1.weight"] = conv
    loaded = load_checkpoint(convert(state)).model.state_dict()
    assert torch.equal(loaded["scale_head.linear.weight"], weight)
    assert torch.equal(loaded["scale_head.linear.bias"], bias)
    assert torch.equal(loaded["teacher.conv1.weight"], conv.float())
    assert loaded["teacher.bn1.num_batches_tracked"].dtype == torch.int64
    assert all(t == 0 for name, t in loaded.items() if name.endswith("num_batches_tracked"))


# ---- Whole modules ----


def as_module(state: State) -> nn.Module:
    """A module tree with these names, of classes in a module that no longer can be imported."""
    code = types.ModuleType(PUBLISHED_CODE)

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._norm_layer = nn.BatchNorm2d  # the published blocks keep the class itself
            self.notes = {"shape": torch.Size([1, 2]), "device": torch.device("cpu"),
                          "dtype": torch.float32, "names": {"a"}, "fixed": frozenset("b")}
            self.register_buffer("scratch", torch.zeros(2), persistent=False)

    Part.__module__, Part.__qualname__ = PUBLISHED_CODE, "Part"
    code.Part = Part  # type: ignore[attr-defined]
    sys.modules[PUBLISHED_CODE] = code
    root = Part()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        part: nn.Module = root
        for parent in parents:
            if parent not in part._modules:
                part.add_module(parent, Part())
            part = part.get_submodule(parent)
        if leaf in ("running_mean", "running_var", "num_batches_tracked"):
            part.register_buffer(leaf, value)
        else:
            part.register_parameter(leaf, nn.Parameter(value))
    root.relu, root.nothing = nn.ReLU(inplace=True), None
    return root


@pytest.fixture
def save_module(tmp_path: Path) -> Callable[[nn.Module], Path]:
    """Save a module as a whole and forget the code of its classes."""

    def save(module: nn.Module) -> Path:
        torch.save(module, tmp_path / "module.pth")
        del sys.modules[PUBLISHED_CODE]
        return tmp_path / "module.pth"

    return save


def test_a_whole_module_becomes_the_same_tensors(model, published, save_module, tmp_path):
    source = save_module(as_module(published))
    with pytest.raises(ModuleNotFoundError):  # what reading it by torch.load needs
        torch.load(source, weights_only=False)
    assert_same_tensors(convert_published(source, tmp_path / "out.safetensors"), model)
    assert PUBLISHED_CODE not in sys.modules


def test_a_data_parallel_module(save_module, tmp_path):
    source = save_module(nn.DataParallel(as_module(light_state("resnet18"))))
    loaded = load_checkpoint(convert_published(source, tmp_path / "out.safetensors")).model
    assert all(bool((p == 1).all()) for p in loaded.state_dict().values())


@pytest.mark.slow
def test_a_whole_wide_resnet50_2(save_module, tmp_path):
    shapes = json.loads(GOLDEN.read_text())
    state = {name: torch.full((), 0.5).expand(shape) for name, shape in shapes.items()
             if not name.endswith("num_batches_tracked")}
    path = convert_published(save_module(as_module(state)), tmp_path / "out.safetensors")
    checkpoint = load_checkpoint(path)
    assert checkpoint.config.backbone == "wide_resnet50_2"
    assert all(bool((p == 0.5).all()) for p in checkpoint.model.parameters())


# ---- What does not fit ----


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
def test_a_missing_key_is_named_with_the_backbone(tmp_path, backbone):
    state = light_state(backbone)
    del state["decoder.layer2.0.upsample.0.weight"]
    torch.save(state, tmp_path / "short.pth")
    message = refusal(tmp_path / "short.pth")
    assert f"nearest to {backbone}," in message
    assert "student.layer2.0.shortcut.0.weight is missing" in message


@pytest.mark.parametrize(("change", "expected"), [
    ({"mlp.weight": torch.zeros(3, 511)},
     r"scale_head\.linear\.weight: expected \(3, 512\), got \(3, 511\)"),
    ({"encoder.layer3.9.conv1.weight": torch.zeros(1)}, "teacher.layer3.9.conv1.weight is unknown"),
    ({"attention.weight": torch.zeros(1)}, "attention.weight: the published model has no such"),
    ({"x" * 10_000: torch.zeros(1)}, "x: the published model has no such"),
    ({"mlp.bias": torch.zeros(3, dtype=torch.int64)}, "expected torch.float32, got torch.int64"),
    ({"mlp.bias": torch.tensor([0.0, float("nan"), 0.0])}, "expected finite values"),
    ({"mlp.bias": torch.tensor([0.0, 1e300, 0.0], dtype=torch.float64)}, "expected finite values"),
    ({"module.mlp.bias": torch.zeros(3)}, "comes twice"),
    ({"mlp.bias": [0.0, 0.0, 0.0]}, "expected tensors by name, got list under mlp.bias"),
    ({("mlp", "bias"): torch.zeros(3)}, "got _TensorRef under a tuple"),
])
def test_wrong_tensors_are_named(tmp_path, change, expected):
    torch.save(light_state("resnet18") | change, tmp_path / "wrong.pth")
    assert re.search(expected, refusal(tmp_path / "wrong.pth"))


@pytest.mark.parametrize("saved", [[1, 2], torch.zeros(3), {"model": 5}, nn.ReLU, slice(1, 2)],
                         ids=str)
def test_other_things_than_a_model(tmp_path, saved):
    torch.save(saved, tmp_path / "other.pth")
    refusal(tmp_path / "other.pth")


def test_an_unwritable_place(tmp_path):
    torch.save(light_state("resnet18"), tmp_path / "published.pth")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        convert_published(tmp_path / "published.pth", tmp_path / "file" / "out.safetensors")


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
