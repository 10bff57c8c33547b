"""Checkpoints: what is saved comes back, and anything else is refused by name."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scrd_fast.errors import CheckpointError, InputError, OutputError
from scrd_fast.model.backbones import STUDENTS
from scrd_fast.model.checkpoint import (
    FORMAT,
    Checkpoint,
    ModelConfig,
    load_checkpoint,
    load_weights,
    read_header,
    read_tensors,
    save_checkpoint,
    write_tensors,
)
from scrd_fast.model.scrd import SCRD
from scrd_fast.spec import DecodingRule, ScoringSpec

SPEC = ScoringSpec(input_size=64, weighting="scale", blur_sigma=1.5, reduction="max")
TRAINING = {"seed": 3, "schedule": [1, 2.5], "name": "α"}
MODEL = {"backbone": "resnet18", "teacher": "", "student": "full"}
METRICS = {"auroc": 0.75, "loss": None}


def make(student: str) -> Checkpoint:
    torch.manual_seed(0)
    model = SCRD("resnet18", student).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return Checkpoint(model, SPEC, ModelConfig("resnet18", "random", student), TRAINING, METRICS)


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return make("full")


@pytest.fixture(scope="module")
def saved(original, tmp_path_factory) -> Path:
    return save_checkpoint(original, tmp_path_factory.mktemp("saved") / "model.safetensors")


def header_of(path: Path) -> dict:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["scrd_fast"])


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{reason}"):
        load_checkpoint(path)


@pytest.mark.parametrize("student", STUDENTS)
def test_round_trip(student, tmp_path):
    original = make(student)
    got = load_checkpoint(str(save_checkpoint(original, tmp_path / "model.safetensors")))
    assert (got.spec, got.config) == (original.spec, original.config)
    assert (got.training, got.metrics) == (TRAINING, METRICS)
    assert not any(module.training for module in got.model.modules())
    before, after = original.model.state_dict(), got.model.state_dict()
    assert list(before) == list(after)
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name


def test_the_header_says_what_is_needed(saved):
    header = read_header(saved, "checkpoint")
    assert header == header_of(saved)
    assert header["format"] == FORMAT
    assert ScoringSpec.from_dict(header["spec"]) == SPEC
    assert header["model"] == {"backbone": "resnet18", "teacher": "random", "student": "full"}


def test_non_contiguous_and_shared_weights_are_written_whole(tmp_path):
    tensors = {"a": torch.arange(12.0).view(3, 4).T, "b": torch.arange(6)[::2],
               "c": torch.ones(1).expand(5)}
    header = {"kind": "test", "format": FORMAT}
    write_tensors(tmp_path / "x.safetensors", tensors, header)
    got_header, got = read_tensors(tmp_path / "x.safetensors", "test")
    assert got_header == header
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.safetensors", "expected a checkpoint file, got no such file")
    refused(tmp_path, "expected a checkpoint file, got no such file")


def test_truncated_files(saved, tmp_path):
    path = tmp_path / "cut.safetensors"
    shutil.copy(saved, path)
    size = path.stat().st_size
    for length in (size - 1, size // 2, 30_000, 1000, 9, 8, 7, 0):
        os.truncate(path, length)
        refused(path, "truncated or of another kind")


def test_bytes_after_the_end(saved, tmp_path):
    path = tmp_path / "long.safetensors"
    shutil.copy(saved, path)
    with open(path, "ab") as file:
        file.write(b"\0")
    refused(path, "truncated or of another kind")


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.ones(3)}, path, metadata=metadata)
        refused(path, "expected a checkpoint of scrd_fast, got a foreign safetensors")


class Trap:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".safetensors"])
@pytest.mark.parametrize("writer", ["pickle", "torch.save"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, suffix, writer):
    path, trace = tmp_path / f"model{suffix}", tmp_path / "trace"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Trap(trace)))
    else:
        torch.save(Trap(trace), path)
    hint = "" if suffix == ".safetensors" else "scrd-fast convert"
    refused(path, f"truncated or of another kind .*{hint}")
    assert not trace.exists()


def with_header(saved: Path, path: Path, header: object) -> Path:
    """A file of one tensor whose header is this: headers are judged before tensors."""
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"x": torch.ones(1)}, path, metadata={"scrd_fast": text})
    return path


def test_format_1_reads_pictures_as_before(saved, tmp_path):
    """It had no rule for decoding."""
    header = header_of(saved) | {"format": 1, "training": {"steps": 3}}
    del header["spec"]["decoding"], header["model"]["student"]
    path = tmp_path / "old.safetensors"
    with safe_open(saved, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"scrd_fast": json.dumps(header)})
    read = load_checkpoint(path)
    assert read.spec == SPEC
    assert read.spec.decoding == DecodingRule()
    assert read.training == {"steps": 3, "decoding": asdict(DecodingRule()), "student": "full"}
    assert read.config == ModelConfig("resnet18", "random")
    header["format"] = FORMAT
    refused(with_header(saved, tmp_path / "x.safetensors", header), "none for .*'decoding'")


def test_format_2_had_no_student_but_the_full_one(saved, tmp_path):
    header = header_of(saved) | {"format": 2, "training": {}}
    del header["model"]["student"]
    path = tmp_path / "old.safetensors"
    save_file(load_file(saved), path, metadata={"scrd_fast": json.dumps(header)})
    read = load_checkpoint(path)
    assert (read.config.student, read.training) == ("full", {})
    header["format"] = FORMAT
    refused(with_header(saved, tmp_path / "x.safetensors", header), "none for .*'student'")


def test_weights_of_another_student_are_refused(saved, tmp_path):
    header = header_of(saved)
    header["model"]["student"] = "slim"
    path = tmp_path / "x.safetensors"
    save_file(load_file(saved), path, metadata={"scrd_fast": json.dumps(header)})
    refused(path, "6 missing .*'student.projections")


@pytest.mark.parametrize("version", [FORMAT + 1, 0, None, str(FORMAT)])
def test_another_format_version(saved, tmp_path, version):
    path = with_header(saved, tmp_path / "x.safetensors", header_of(saved) | {"format": version})
    refused(path, f"expected format {FORMAT} or older, got {version!r}; a newer scrd_fast may have")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "teacher"}, "expected a checkpoint, got 'teacher'"),
        ({"spec": {}}, "its header does not fit: spec: expected all the fields"),
        ({"spec": None}, "its header does not fit: spec: expected a JSON object"),
        ({"spec": SPEC.to_dict() | {"gamma": 1}}, "its header does not fit: spec: .*gamma"),
        ({"spec": SPEC.to_dict() | {"input_size": 65}}, "does not fit: spec.input_size"),
        ({"model": MODEL | {"teachers": ""}}, "does not fit: model: .*unknown .'teachers'"),
        ({"model": {"backbone": "resnet18"}}, "does not fit: model: .*none for .*'teacher'"),
        ({"model": MODEL | {"backbone": "vgg"}}, "does not fit: backbone: .*got 'vgg'"),
        ({"model": MODEL | {"backbone": {}}}, "does not fit: backbone: "),
        ({"model": MODEL | {"teacher": 3}}, "does not fit: model.teacher"),
        ({"model": MODEL | {"student": "thin"}}, "does not fit: student: .*got 'thin'"),
        ({"model": [1]}, "does not fit: model: expected a JSON object"),
        ({"more": 1}, "fields that are not known: .*'more'"),
    ],
    ids=str,
)
def test_headers_that_do_not_fit(saved, tmp_path, change, reason):
    path = with_header(saved, tmp_path / "x.safetensors", header_of(saved) | change)
    refused(path, reason)


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", ""])
def test_headers_that_are_no_object(saved, tmp_path, text):
    refused(with_header(saved, tmp_path / "x.safetensors", text), "its header is no")


def test_tensors_that_do_not_fit(saved, tmp_path):
    """A missing tensor, a misshapen one and one with a single NaN."""
    tensors, header = load_file(saved), header_of(saved)
    path, name = tmp_path / "bad.safetensors", "student.layer2.0.conv1.weight"
    rest = {k: v for k, v in tensors.items() if k != name}
    holed = tensors[name].clone()
    holed[3, 2, 1, 0] = float("nan")
    cases = [
        (rest, re.escape(f"1 missing ['{name}'] and 0 unknown")),
        (rest | {name: tensors[name][:-1].clone()}, f"{re.escape(name)}: expected .*, got "),
        (rest | {name: holed}, f"{re.escape(name)}: expected finite values"),
    ]
    for changed, reason in cases:
        save_file(changed, path, metadata={"scrd_fast": json.dumps(header)})
        refused(path, reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": torch.ones(1)}, "x: expected the 2 tensors of the model, got 0 missing [] and"
                                  " 1 unknown ['more']"),
        ({"weight": torch.ones(2, 3)}, "x: weight: expected (3, 2), got (2, 3)"),
        ({"weight": torch.full((3, 2), -torch.inf)},
         "x: weight: expected finite values, got NaN or infinity"),
        # Integers would be converted without a word, and every weight below 1 be lost.
        ({"weight": torch.zeros(3, 2, dtype=torch.int32)}, "x: weight: expected"),
    ],
    ids=["unknown", "shape", "infinite", "integers"],
)
def test_load_weights_is_strict(change, message):
    module = torch.nn.Linear(2, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(module, before | change, "x")
    assert str(caught.value).startswith(message)
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())


def test_config_of_an_unknown_backbone():
    with pytest.raises(InputError, match=r"^backbone: expected one of .*resnet18.*, got 'vgg'$"):
        ModelConfig("vgg", "random")


def test_an_unwritable_place(original, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"model\.safetensors: cannot be written: "):
        save_checkpoint(original, tmp_path / "file" / "model.safetensors")


@pytest.mark.slow
def test_a_disk_that_takes_no_more(tmp_path, run_with_file_limit):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")
    printed = run_with_file_limit(f"""
import pathlib
import torch
from scrd_fast.errors import OutputError
from scrd_fast.model.checkpoint import write_tensors
try:
    write_tensors(pathlib.Path({str(path)!r}), {{"x": torch.zeros(100_000)}}, {{}})
except OutputError as error:
    print(error)
""")
    assert printed.startswith(f"{path}: cannot be written: ")
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["model.safetensors"]


@pytest.mark.slow
def test_loading_does_not_load_a_compiler(saved):
    """PyTorch's takes most of a second, and comes with a random number on the meta device."""
    code = ("import sys; from scrd_fast.model.checkpoint import load_checkpoint;"
            f" load_checkpoint({str(saved)!r}); print('torch._dynamo' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60,
                          check=True)
    assert done.stdout == "False\n"
