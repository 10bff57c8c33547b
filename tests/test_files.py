"""atomic_write: whole files or none."""

import os
import stat
from pathlib import Path

import pytest

from scrd_fast.errors import OutputError, ScrdError
from scrd_fast.files import atomic_write


def test_a_new_file_in_a_new_folder(tmp_path):
    path = tmp_path / "a" / "b" / "new.bin"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent
        assert not path.exists()
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["new.bin"]


def test_an_older_file_is_replaced(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"older and longer")
    with atomic_write(str(path)) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"older and longer"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_the_permissions_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file") as temporary:
            temporary.write_bytes(b"x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_in_the_block_leaves_the_older_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"older")

    def write_half() -> None:
        with atomic_write(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "file.bin"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second
        first.write_bytes(b"first")
        second.write_bytes(b"second")
    assert path.read_bytes() == b"first"  # the outer block ends last
    assert os.listdir(tmp_path) == ["file.bin"]


def write_to(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"x")


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"older")
    path = tmp_path / "file" / "deeper" / "model.bin"
    with pytest.raises(OutputError) as caught:
        write_to(path)
    assert str(caught.value).startswith(f"{path}: cannot be written: ")
    assert isinstance(caught.value, ScrdError)
    assert (tmp_path / "file").read_bytes() == b"older"


def test_a_path_that_is_a_folder(tmp_path):
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"folder: cannot be written: "):
        write_to(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0,
                    reason="permission bits do not hold for root")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"cannot be written: Permission denied"):
            write_to(tmp_path / "file")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_that_nobody_can_write_to():
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs a file system that refuses new files, as /proc does")
    with pytest.raises(OutputError, match=r"^/proc/self/model\.bin: cannot be written: "):
        write_to(Path("/proc/self/model.bin"))


def test_a_disk_that_takes_no_more(tmp_path, run_with_file_limit):
    path = tmp_path / "file.bin"
    path.write_bytes(b"older")
    printed = run_with_file_limit(f"""
from scrd_fast.errors import OutputError
from scrd_fast.files import atomic_write
try:
    with atomic_write({str(path)!r}) as temporary:
        temporary.write_bytes(bytes(100_000))
except OutputError as error:
    print(error)
""")
    assert printed == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file.bin"]
