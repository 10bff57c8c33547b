"""The engine file: what is written comes back, and anything else is refused."""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from scrd_fast.backends.tensorrt.plan import PlanTies, TensorRtOptions
from scrd_fast.engine.engine_file import describe, read_engine_file, write_engine_file
from scrd_fast.engine.manifest import (
    FORMAT,
    Attempt,
    Fidelity,
    Manifest,
    Model,
    SearchRecord,
    SearchTry,
    Training,
    Work,
)
from scrd_fast.errors import EngineFileError, OutputError
from scrd_fast.machine import Gpu, Machine
from scrd_fast.metrics.agreement import Limits, Report
from scrd_fast.metrics.decisions import Decisions
from scrd_fast.metrics.map_scale import MapScale
from scrd_fast.spec import DecodingRule, ScoringSpec
from tests.support.priors import random_prior

MEMBERS = {"network.onnx": bytes(range(40)), "golden.safetensors": b"golden"}
REPORT = Report(images=24, map_error=1e-7, score_error=2e-7, rank_correlation=None, auroc=None,
                auroc_change=None, flipped=0.0)
TRIES = (SearchTry(("a.", "b."), 1.5, replace(REPORT, rank_correlation=0.999)),)
MANIFEST = Manifest(
    spec=ScoringSpec(input_size=64), model=Model("resnet18", "random"),
    backend="torch", precision="fp32", precision_used={"conv": {"fp32": 3}},
    buckets=(1, 4, 16), machine=Machine("x86_64", "Linux", "avx2", "µ", 2), versions={"torch": "2"},
    fidelity=Fidelity(
        "golden", REPORT, Limits(map_error=1e-4), (Attempt("fp32", 1.5, REPORT),
                                                   Attempt("int8", why_not="too coarse")),
        SearchRecord(("a.",), {"a.": 0.5}, TRIES)),
    work=Work(2e9, 0.0, 1e7),
    training=Training({"steps": 5, "noise.strength": 0.5, "augment": True, "teacher": None,
                       "selection": "held-out"}, {"auroc_synthesised": 0.9}, {"data": 30}),
)
ON_A_GPU = replace(
    MANIFEST, machine=replace(MANIFEST.machine, gpu=Gpu("H100", (9, 0), "13.0", 91000)),
    plan=PlanTies("10.16.1", None, TensorRtOptions(workspace_gb=1.5)))
CALIBRATION = Decisions((0.5, 1.0), ((0.2, 0.3, 0.5),) * 2, "f1", None, 0.75, {
    "images": {"normal": 2, "anomalous": 3}, "auroc": (0.9, 0.8, 1.0)}, MapScale((0.1, 0.9), 0.5))


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sealed(data: bytes, left_out: Iterable[tuple[str, bytes]] = ()) -> bytes:
    """Zip bytes that end in a 64-byte comment, with the digest of all put there but the contents of
    these members, which are in their order, each behind its name."""
    kept, rest = b"", data[:-64]
    for name, content in left_out:
        before, found, rest = rest.partition(name.encode() + content)
        assert found
        kept += before + name.encode()
    return data[:-64] + digest(kept + rest).encode()


def craft(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED,
          *, format_: int = FORMAT) -> Path:
    """A zip of exactly these members with a right digest at its end."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
        archive.comment = bytes(64)
    plain = format_ > 4 and method == zipfile.ZIP_STORED
    left_out = [(name, data) for name, data in members
                if plain and not name.startswith("manifest.")]
    path.write_bytes(sealed(path.read_bytes(), left_out))
    return path


def listed(manifest: dict, members: dict[str, bytes] = MEMBERS) -> dict:
    return manifest | {"members": {name: digest(data) for name, data in members.items()}}


def with_digest(values: object) -> list[tuple[str, bytes]]:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    return [("manifest.json", text), ("manifest.sha256", digest(text).encode())]


def good_members() -> list[tuple[str, bytes]]:
    return [*with_digest(listed(asdict(MANIFEST))), *MEMBERS.items()]


def refused(path: Path, reason: str = "") -> None:
    """One line that begins with the file's name."""
    with pytest.raises(EngineFileError, match=f"^{re.escape(str(path))}: .*{reason}") as caught:
        read_engine_file(path)
    assert "\n" not in str(caught.value)


@pytest.fixture
def path(tmp_path) -> Path:
    return write_engine_file(tmp_path / "model.scrd", MANIFEST, MEMBERS)


@pytest.mark.parametrize("manifest", [MANIFEST, ON_A_GPU, replace(
    MANIFEST, calibration=CALIBRATION, work=None)], ids=["a CPU's", "a GPU's", "calibrated"])
@pytest.mark.parametrize("members", [MEMBERS, {"only": b""}, {"large": os.urandom(3 << 20)}],
                         ids=["two", "an empty one", "larger than a block"])
def test_round_trip(tmp_path, members, manifest):
    path = write_engine_file(tmp_path / "new" / "model.scrd", manifest, members)
    got, contents = read_engine_file(str(path))
    assert contents == members
    assert got == replace(manifest, members={n: digest(d) for n, d in members.items()})
    assert os.listdir(path.parent) == ["model.scrd"]


def test_the_same_content_gives_the_same_bytes(tmp_path, path):
    again = write_engine_file(tmp_path / "again.scrd", MANIFEST, MEMBERS)
    assert again.read_bytes() == path.read_bytes()


def test_any_tool_can_list_it(path):
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "manifest.sha256", *MEMBERS]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        comment = archive.comment
    # Of what is around the members that the manifest lists.
    whole = path.read_bytes()
    assert whole == sealed(whole, MEMBERS.items())
    assert whole[-64:] == comment


def test_the_crafted_file_is_accepted_when_nothing_is_wrong(tmp_path):
    """What the tests below rely on: only the fault they put in is refused."""
    manifest, contents = read_engine_file(craft(tmp_path / "x.scrd", good_members()))
    assert contents == MEMBERS
    assert manifest.buckets == (1, 4, 16)


@pytest.mark.slow
def test_every_flipped_byte_is_found(path):
    whole = path.read_bytes()
    with open(path, "rb+", buffering=0) as file:
        for at, byte in enumerate(whole):
            for flip in (0x01, 0xFF):
                file.seek(at)
                file.write(bytes([byte ^ flip]))
                with pytest.raises(EngineFileError):
                    read_engine_file(path)
            file.seek(at)
            file.write(bytes([byte]))
    assert read_engine_file(path)[1] == MEMBERS


def test_every_truncation_is_found(path):
    for length in reversed(range(path.stat().st_size)):
        os.truncate(path, length)
        with pytest.raises(EngineFileError):
            read_engine_file(path)


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06", bytes(100)])
def test_bytes_after_the_end_are_found(path, extra):
    path.write_bytes(path.read_bytes() + extra)
    refused(path, "damaged or truncated")


@pytest.mark.parametrize("version", [FORMAT + 1, 0, 99])
def test_another_format_version(tmp_path, version):
    path = write_engine_file(tmp_path / "model.scrd", replace(MANIFEST, format=version), MEMBERS)
    refused(path, f"expected engine format {FORMAT} or older, got {version}; .*upgrade, or build")


def test_format_2_reads_pictures_as_before(tmp_path):
    """It had no rule for decoding."""
    values = listed(asdict(MANIFEST)) | {"format": 2}
    del values["training"]
    values["spec"] = {k: v for k, v in values["spec"].items() if k != "decoding"}
    path = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()], format_=2)
    manifest = read_engine_file(path)[0]
    assert manifest.format == FORMAT
    assert manifest.spec == MANIFEST.spec
    assert manifest.spec.decoding == DecodingRule()
    today = values | {"format": FORMAT, "training": None}
    with_rule = craft(tmp_path / "y.scrd", [*with_digest(today),
                                            *MEMBERS.items()])
    refused(with_rule, r"manifest.spec: expected all the fields .* none for \['decoding'\]")


def test_format_3_tells_neither_of_training_nor_of_maps(tmp_path):
    values = listed(asdict(replace(MANIFEST, calibration=CALIBRATION))) | {"format": 3}
    del values["training"], values["calibration"]["maps"]
    path = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()], format_=3)
    manifest = read_engine_file(path)[0]
    assert manifest.format == FORMAT
    assert manifest.training is None
    assert manifest.calibration == replace(CALIBRATION, maps=None)
    newer = craft(tmp_path / "y.scrd", [
        *with_digest(values | {"format": FORMAT, "training": None}), *MEMBERS.items()])
    refused(newer, r"manifest.calibration: expected all the fields .* none for \['maps'\]")


def test_format_6_had_neither_a_prior_nor_a_slim_student(tmp_path):
    values = listed(asdict(MANIFEST)) | {"format": 6}
    values["model"] = {"backbone": "resnet18", "teacher": "random"}
    values["spec"] = {k: v for k, v in values["spec"].items() if k != "prior"}
    path = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()], format_=6)
    manifest = read_engine_file(path)[0]
    assert manifest.model == Model("resnet18", "random", "full")
    assert manifest.spec == replace(MANIFEST.spec, prior=None)
    newer = craft(tmp_path / "y.scrd", [
        *with_digest(values | {"format": FORMAT}), *MEMBERS.items()])
    refused(newer, r"manifest.spec: expected all the fields .* none for \['prior'\]")


def test_what_a_file_says_of_itself_is_for_a_screen(tmp_path):
    """All of the manifest but the numbers of a normal map, whose length is told."""
    prior = random_prior(4)
    manifest = replace(MANIFEST, spec=replace(MANIFEST.spec, prior=prior))
    write_engine_file(tmp_path / "x.scrd", manifest, MEMBERS)
    told = json.loads(json.dumps(describe(tmp_path / "x.scrd")))
    whole = json.loads(json.dumps(asdict(read_engine_file(tmp_path / "x.scrd")[0])))
    assert told["spec"]["prior"].pop("values") == (
        f"{len(prior.values)} characters, left out here")
    assert whole["spec"]["prior"].pop("values") == prior.values
    assert told == whole
    write_engine_file(tmp_path / "y.scrd", MANIFEST, MEMBERS)
    assert describe(tmp_path / "y.scrd")["spec"]["prior"] is None


def test_format_5_knew_no_targets(tmp_path):
    plan = PlanTies("10.16.1.11", None, TensorRtOptions())
    values = listed(asdict(replace(MANIFEST, plan=plan))) | {"format": 5}
    del values["plan"]["targets"], values["fidelity"]["emulated"]
    path = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()], format_=5)
    manifest = read_engine_file(path)[0]
    assert manifest.format == FORMAT
    assert manifest.plan == plan
    assert not manifest.fidelity.emulated
    newer = craft(tmp_path / "y.scrd", [
        *with_digest(values | {"format": FORMAT}), *MEMBERS.items()])
    refused(newer, "expected all the fields .* none for")


@pytest.mark.parametrize("version", [None, "1", [1], True, 1.0])
def test_a_format_that_is_no_number(tmp_path, version):
    values = listed(asdict(MANIFEST)) | {"format": version}
    path = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()])
    refused(path, f"expected engine format {FORMAT} or older, got ")


def test_unlisted_member(tmp_path):
    path = craft(tmp_path / "x.scrd", [*good_members(), ("evil.pkl", b"x")])
    refused(path, r"expected the members \['golden.*, got .*'evil.pkl'")


@pytest.mark.parametrize("name", MEMBERS)
def test_missing_member(tmp_path, name):
    path = craft(tmp_path / "x.scrd", [m for m in good_members() if m[0] != name])
    refused(path, "expected the members ")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sha256"])
def test_missing_manifest(tmp_path, name):
    path = craft(tmp_path / "x.scrd", [m for m in good_members() if m[0] != name])
    refused(path, "manifest.json is missing or does not match its digest")


@pytest.mark.parametrize("name", ["manifest.json", "network.onnx"])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_member_that_is_there_twice(tmp_path, name, same):
    members = good_members()
    members.insert(1, (name, dict(members)[name] if same else b"other"))
    refused(craft(tmp_path / "x.scrd", members), "a member is there twice")


@pytest.mark.parametrize("name", MEMBERS)
def test_member_with_another_content(tmp_path, name):
    members = list((dict(good_members()) | {name: b"other"}).items())
    refused(craft(tmp_path / "x.scrd", members), f"{name}: its digest does not match")


def test_manifest_with_another_digest(tmp_path):
    members = list((dict(good_members()) | {"manifest.sha256": digest(b"").encode()}).items())
    refused(craft(tmp_path / "x.scrd", members), "manifest.json is missing or does not match")


FIELDS = listed(asdict(MANIFEST))
UNFIT = {
    "no JSON": b"{",
    "no text": b"\xff\xfe",
    "a list": [],
    "a string": "text",
    "empty": {},
    "an unknown field": FIELDS | {"unknown": 1},
    "a missing field": {k: v for k, v in FIELDS.items() if k != "backend"},
    "an empty spec": FIELDS | {"spec": {}},
    "no spec": FIELDS | {"spec": None},
    "a wrong spec": FIELDS | {"spec": FIELDS["spec"] | {"input_size": 65}},
    "members in a list": FIELDS | {"members": list(MEMBERS)},
    "no members": FIELDS | {"members": None},
    "members without digests": FIELDS | {"members": dict.fromkeys(MEMBERS, 1)},
}


def leaves(value, place=()):
    """The places of all values of JSON, those that hold others included."""
    yield place
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    for name, each in pairs:
        yield from leaves(each, (*place, name))


@pytest.mark.slow
def test_a_value_of_another_type_is_named_wherever_it_is(tmp_path):
    """Every field down to the leaves, of every manifest above."""
    for manifest in (ON_A_GPU, replace(MANIFEST, calibration=CALIBRATION)):
        whole = json.loads(json.dumps(listed(asdict(manifest))))
        for place in leaves(whole):
            if not place or place == ("format",):
                continue
            values = json.loads(json.dumps(whole))
            *path, last = place
            inside = values
            for name in path:
                inside = inside[name]
            # No field is a list of true and a list: JSON has no such thing anywhere here.
            inside[last] = [True, []]
            file = craft(tmp_path / "x.scrd", [*with_digest(values), *MEMBERS.items()])
            refused(file, re.escape("manifest." + str(place[0])))


def test_no_field_of_the_manifest_is_of_any_type():
    """Typed to the leaves: what is not spelled out would not be checked."""
    seen = set()

    def walk(kind):
        assert kind is not Any
        if is_dataclass(kind) and kind not in seen:
            seen.add(kind)
            for each in get_type_hints(kind).values():
                walk(each)
        for argument in get_args(kind):
            walk(argument)

    walk(Manifest)
    assert {Manifest, Report, Decisions, PlanTies, TensorRtOptions, Gpu} <= seen


@pytest.mark.parametrize("case", UNFIT)
def test_manifest_that_does_not_fit(tmp_path, case):
    refused(craft(tmp_path / "x.scrd", [*with_digest(UNFIT[case]), *MEMBERS.items()]))


def test_damaged_zip_with_a_right_digest(tmp_path):
    """Every byte of the directory, of the headers and of the compressed data in turn."""
    path = craft(tmp_path / "x.scrd", good_members(), zipfile.ZIP_DEFLATED)
    whole, flaws = path.read_bytes(), []
    for at in range(2, len(whole) - 64):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        with open(path, "rb+") as file:
            file.write(sealed(bytes(damaged)))
        try:
            _, contents = read_engine_file(path)
        except EngineFileError:
            continue
        except Exception as error:
            flaws.append((at, repr(error)))
        else:
            # A date or an attribute may differ; what the manifest lists may not.
            if contents != MEMBERS:
                flaws.append((at, "other content"))
    assert flaws == []


@pytest.mark.parametrize("content", [b"", b"P", b"PK", b"PK\x03\x04", b"not an engine" * 20,
                                     bytes(500), b"\x80\x04pickle"])
def test_what_is_no_engine_file(tmp_path, content):
    path = tmp_path / "model.scrd"
    path.write_bytes(content)
    refused(path)


def test_garbage_with_a_right_digest(tmp_path):
    path = tmp_path / "model.scrd"
    path.write_bytes(sealed(b"PK" + os.urandom(500)))
    refused(path, "not a readable zip")


def test_an_ordinary_zip(tmp_path):
    path = tmp_path / "model.scrd"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("network.onnx", b"x")
    refused(path, "damaged or truncated")


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.scrd", "No such file or directory; build one with: scrd-fast build")
    refused(tmp_path, "expected an engine file, got ")


def test_a_disk_that_takes_no_more(path, run_with_file_limit):
    before = path.read_bytes()
    printed = run_with_file_limit(f"""
from scrd_fast.engine.engine_file import describe, read_engine_file, write_engine_file
from scrd_fast.errors import OutputError
manifest, members = read_engine_file({str(path)!r})
try:
    write_engine_file({str(path)!r}, manifest, members | {{"large": bytes(100_000)}})
except OutputError as error:
    print(error)
""")
    assert printed == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.scrd"]


def test_an_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"model\.scrd: cannot be written: "):
        write_engine_file(tmp_path / "file" / "model.scrd", MANIFEST, MEMBERS)
