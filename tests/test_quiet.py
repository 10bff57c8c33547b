"""No verb sends anything, or writes anywhere but where it is told to; no home is needed."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.model.published_files import light_state

ROOT = Path(__file__).parent.parent
SMALL = ("--backbone", "resnet18", "--input-size", "32", "--batch-size", "4", "--quiet")
CALLS = ("connect,bind,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,"
         "unlink,unlinkat,truncate,link,linkat,symlink,symlinkat,mknod,mknodat")
CHANGES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(?:creat|mkdir|rename|unlink|truncate|link|symlink"
                     r"|mknod)")


def make_images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(24):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (32, 32), np.uint8))


def environment(**changes: object) -> dict[str, str]:
    """Of a person at home rather than of a test, whom libraries may spare."""
    kept = {k: v for k, v in os.environ.items()
            if not k.startswith(("CI", "XDG_", "MPLCONFIGDIR", "TORCHINDUCTOR"))}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"} | {
        k: str(v) for k, v in changes.items()}


def can_trace() -> bool:
    return shutil.which("strace") is not None and subprocess.run(
        ["strace", "-qq", "--seccomp-bpf", "-f", "-o", os.devnull, "true"], check=False,
        capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder in which every verb ran, with what the audit hook saw."""
    root = tmp_path_factory.mktemp("quiet")
    for name in ("home", "cwd", "tmp"):
        (root / name).mkdir()
    make_images(root / "images")
    torch.save(light_state("resnet18"), root / "published.pth")
    images, model, engine = root / "images", root / "m.safetensors", root / "m.scrd"
    verbs = [
        ["--help"], ["--version"],
        ["pretrain-teacher", images, root / "t.safetensors", "--steps", 1, *SMALL],
        ["train", images, model, "--teacher", root / "t.safetensors", "--steps", 2,
         "--tensorboard", root / "scalars", *SMALL],
        ["convert", root / "published.pth", root / "converted.safetensors"],
        ["export", model, root / "m.onnx"],
        ["build", model, "--precision", "fp32", "--report", root / "page.html", "--quiet"],
        ["info", engine], ["verify", engine, "--quiet"],
        ["calibrate", engine, images, "--fpr", 0.1, "--quiet"],
        ["monitor", engine, images, "--quiet"],
        ["score", engine, images, "--overlays", root / "overlays", "--out", root / "s.csv"],
        ["bench", engine, "--seconds", 1, "--json", root / "b.json", "--quiet"],
    ]
    trace = ("strace", "-f", "-qq", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", root / "trace")
    command = [*(trace if can_trace() else ()), sys.executable, "-m", "tests.support.audited", root,
               json.dumps([list(map(str, verb)) for verb in verbs])]
    done = subprocess.run(command, cwd=root / "cwd", capture_output=True, text=True, timeout=300,
                          check=False, env=environment(HOME=root / "home", TMPDIR=root / "tmp"))
    assert done.returncode == 0, done.stderr
    return root, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_no_verb_sends_or_writes_elsewhere(work):
    root, told = work
    assert len(told["codes"]) == 13
    assert set(told["codes"].values()) == {0}
    assert told["found"] == []
    for name in ("home", "cwd"):
        assert list((root / name).rglob("*")) == []
    # An empty folder of PyTorch's compiler, which its optimisers import.
    assert [p.name.partition("_")[0] for p in (root / "tmp").rglob("*")] in ([], ["torchinductor"])


@pytest.mark.slow
def test_nor_do_the_libraries_behind_its_back(work):
    root, _ = work
    if not (root / "trace").exists():
        pytest.skip("strace is not installed, or may not be used here")
    calls = [line.split(maxsplit=1)[1] for line in (root / "trace").read_text().splitlines()]
    assert len(calls) > 1000
    bad = []
    for call in calls:
        if call.startswith(("connect", "bind", "send")) and "AF_INET" in call:
            bad.append(call)
        named = re.search(r'"(/[^"]*)"', call)
        if (CHANGES.search(call) and named and " = -1 " not in call
                and not named[1].startswith((f"{root}/", "/dev/null", "/proc/self/"))):
            bad.append(call)
    assert bad == []


def test_importing_openvino_is_left_to_the_caller(tmp_path):
    """It is what sends and writes; ours loads the library alone, and both get on together."""
    code = ("import sys; from scrd_fast.backends.registry import native_precisions;"
            " native_precisions('openvino');"
            " assert 'openvino' not in sys.modules; sys.modules['openvino_telemetry'] = None;"
            " import openvino; from scrd_fast import _openvino; print(openvino.__version__"
            " == _openvino.version(), 'CPU' in openvino.Core().available_devices)")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, check=True, env=environment(HOME=tmp_path))
    assert done.stdout == "True True\n"


@pytest.fixture
def open_folder():
    """One that every user may use: pytest's own is the owner's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_user_without_home_or_name(open_folder):
    """As in a container or a queue; another user only where the tests run as root."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "TMPDIR": "/nonexistent"}
    python = [sys.executable]
    if os.geteuid() == 0 and shutil.which("setpriv"):
        python = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *python]
    else:
        env["HOME"] = "/nonexistent"
    readable = subprocess.run(
        [*python, "-c", f"import torch; open({str(ROOT / 'setup.py')!r})"], cwd="/", check=False,
        capture_output=True, env=env).returncode == 0
    if not readable:
        pytest.skip("this Python, or this folder, is not another user's to read")
    make_images(open_folder / "images")
    out = open_folder / "out"
    out.mkdir()
    out.chmod(0o777)
    model, engine = out / "m.safetensors", out / "m.scrd"
    verbs = [["train", open_folder / "images", model, "--teacher", "random", "--steps", 1, *SMALL],
             ["build", model, "--precision", "fp32", "--quiet"],
             ["score", engine, open_folder / "images"]]
    done = subprocess.run(
        [*python, "-m", "tests.support.audited", out,
         json.dumps([list(map(str, verb)) for verb in verbs])], cwd="/", check=False,
        capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == {"train": 0, "build": 0, "score": 0}, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
