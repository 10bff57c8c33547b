"""docs/deploy.md: its commands run."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.serving.conftest import ROOT, run_service
from tests.support.models import pictures

BLOCKS = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "deploy.md").read_text(), re.S | re.M)


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return map(str, ports)


@pytest.mark.slow
def test_its_commands(small_path, served_file, tmp_path):
    """In the order of the page, in a folder with its files, on ports that are free."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    pytest.importorskip("tritonclient.grpc")
    shutil.copy(served_file, tmp_path / "model.scrd")
    shutil.copy(small_path, tmp_path / "model.safetensors")
    cv2.imwrite(str(tmp_path / "image.png"), pictures(1, 64)[0])
    http, grpc = free_ports(2)
    first, *others = [block.replace("8000", http).replace("8001", grpc) for block in BLOCKS]
    assert len(others) == 6
    verb, _, arguments = first.strip().partition(" serve ")
    assert verb == "scrd-fast"
    arguments = arguments.replace("model.scrd", str(tmp_path / "model.scrd")).split()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, command in (("scrd-fast", f'exec "{sys.executable}" -m scrd_fast "$@"'),
                          ("python", f'exec "{sys.executable}" "$@"')):
        (bin_folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (bin_folder / name).chmod(0o755)
    with run_service(tmp_path / "log", *arguments):
        for block in others:
            done = subprocess.run(
                ["sh", "-e", "-c", block], cwd=tmp_path, capture_output=True, text=True,
                timeout=300, env={"PATH": f"{bin_folder}:/usr/bin:/bin", "PYTHONPATH": str(ROOT),
                     "HOME": str(tmp_path)})
            assert done.returncode == 0, (block, done.stderr)
            assert done.stdout, block
    assert (tmp_path / "triton" / "brain" / "config.pbtxt").exists()
    assert (tmp_path / "openvino" / "brain" / "1" / "model.onnx").exists()


def test_it_names_all_metrics():
    """What the page tells of metrics is what there is."""
    from scrd_fast.serving import metrics

    text = Path(metrics.__file__).read_text()
    page = (ROOT / "docs" / "deploy.md").read_text()
    for name in re.findall(r'"(scrd_\w+)"', text):
        assert name in page, name
