"""What a user installs: the sdist holds the whole project, the wheel the whole package."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

import scrd_fast

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> set[str]:
    """Files that git keeps, links left out."""
    done = subprocess.run(["git", "ls-files", "-s", *patterns], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    if done.returncode:
        pytest.skip(f"no git checkout: {done.stderr.strip()}")
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {name for mode, name in rows if not mode.startswith("120000")}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist of this tree, and the wheel that it makes. Each is built in an environment of its
    own, which pip fills."""
    pytest.importorskip("build", reason="needs the build package")
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True,
                   capture_output=True, timeout=900)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_is_the_project(built, tmp_path):
    with tarfile.open(built[0]) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    packed = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    wanted = {name for name in tracked() if not name.startswith((".ci/", ".git"))}
    assert wanted <= packed, sorted(wanted - packed)
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", ""], cwd=ROOT,
        capture_output=True, text=True, check=True)
    # The extensions come from this checkout: collecting is not building.
    for library in (ROOT / "scrd_fast").glob("*.so"):
        (root / "scrd_fast" / library.name).symlink_to(library)
    again = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", ""], cwd=root,
        capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout[-2000:]
    last = [run.stdout.splitlines()[-1].partition(" in ")[0] for run in (collected, again)]
    assert last[0] == last[1]


@pytest.mark.slow
def test_the_wheel_is_the_package(built, tmp_path):
    with zipfile.ZipFile(built[1]) as archive:
        packed = set(archive.namelist())
    wanted = tracked("scrd_fast")
    assert wanted <= packed, sorted(wanted - packed)
    assert "scrd_fast/py.typed" in packed
    assert {name.split(".")[0] for name in packed if name.endswith(".so")} == {
        "scrd_fast/_native", "scrd_fast/_openvino"}
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
                    str(tmp_path), str(built[1])], check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, '.'); import scrd_fast;"
         " print(scrd_fast.__file__); from scrd_fast.cli import main; main(['--help'])"],
        cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


@pytest.mark.slow
def test_the_base_install_scores(built, small_file, tmp_path):
    """Installed with what it depends on and no more, it scores with the bits of this one."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    done = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c",
         ROOT / "constraints.txt", built[1]], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"its dependencies do not install here: {done.stderr.strip()[-200:]}")
    images = np.random.default_rng(0).integers(0, 256, (5, 60, 70, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = ("import sys, numpy as np, scrd_fast; from importlib.util import find_spec;"
            " assert not any(map(find_spec, ('torch', 'onnx', 'scipy')));"
            " r = scrd_fast.load_engine(sys.argv[1], verify=True).score(np.load(sys.argv[2]));"
            " np.savez(sys.argv[3], scores=r.scores, maps=r.maps)")
    subprocess.run([python, "-c", code, small_file, tmp_path / "images.npy", tmp_path / "out.npz"],
                   check=True, cwd=tmp_path)
    with scrd_fast.load_engine(small_file) as engine, np.load(tmp_path / "out.npz") as found:
        here = engine.score(images)
        np.testing.assert_array_equal(found["scores"], here.scores)
        np.testing.assert_array_equal(found["maps"], here.maps)
    script = tmp_path / "venv" / "bin" / "scrd-fast"
    assert subprocess.run([script, "info", small_file], capture_output=True).returncode == 0
