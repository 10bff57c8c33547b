"""atomic_write: whole files or none."""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scrd_fast.errors import InputError, OutputError, ScrdError
from scrd_fast.files import as_path, atomic_write, check_writable


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


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_threads_leave_the_umask_alone(tmp_path):
    """It is the process's: one that reads it by setting it may find another's in its place."""
    def write(thread):
        for i in range(300):
            with atomic_write(tmp_path / f"{thread}-{i}") as temporary:
                temporary.write_bytes(b"x")

    before, interval = os.umask(0o027), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
    finally:
        sys.setswitchinterval(interval)
        after = os.umask(before)
    assert after == 0o027
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


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
from scrd_fast.files import as_path, atomic_write, check_writable
try:
    with atomic_write({str(path)!r}) as temporary:
        temporary.write_bytes(bytes(100_000))
except OutputError as error:
    print(error)
""")
    assert printed == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"older")
    (tmp_path / "link").symlink_to(Path("real") / "file")
    write_to(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"x"
    assert os.listdir(tmp_path / "real") == ["file"]


@pytest.mark.parametrize("name", [b"x" * 255, b"M\xfcller.csv", "Müller [bold].csv".encode()])
def test_any_name_that_the_file_system_takes(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    check_writable(path, "out")
    write_to(path)
    assert os.listdir(os.fsencode(tmp_path)) == [name]


REFUSED = {
    "file/below.csv": "expected a folder|Not a directory",
    "folder": "expected a file, got a folder",
    f"new/{'x' * 256}/s.csv": "File name too long",
    "ä" * 128: "File name too long",
    "/proc/new/s.csv": "No such file|Permission denied|Read-only",
    "/dev/full": "device",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_found_before(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    with pytest.raises(OutputError, match=f"^--out: .*cannot be written: .*({REFUSED[name]})"):
        check_writable(path, "--out")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(tmp_path / "folder") == []
    with pytest.raises(OutputError):  # and it is true
        write_to(path)


def test_a_folder_to_write_to(tmp_path):
    (tmp_path / "file").touch()
    for good in (tmp_path, tmp_path / "new", tmp_path / "new" / "deeper"):
        check_writable(good, "out", folder=True)
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/new")):
        with pytest.raises(OutputError, match=r"^out: .*: cannot be written: "):
            check_writable(bad, "out", folder=True)
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_read_is_not_overwritten(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "link.csv").symlink_to("a.png")
    inputs = [tmp_path / "gone.png", tmp_path / "b.png", tmp_path / "a.png"]
    check_writable(tmp_path / "c.csv", "out", inputs=inputs)
    for out in ("a.png", "../" + tmp_path.name + "/a.png", "link.csv"):
        with pytest.raises(InputError, match=r"out: expected another file than those"):
            check_writable(tmp_path / out, "out", inputs=inputs)


def test_paths_of_every_kind(tmp_path):
    for value in (str(tmp_path), os.fsencode(tmp_path), tmp_path):
        assert as_path(value, "path") == tmp_path
    for wrong in (5, None, ["a"], "a\0b"):
        with pytest.raises(InputError, match=r"^path: expected a path, got "):
            as_path(wrong, "path")
