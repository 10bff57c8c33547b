"""Finding image files in folders."""

import os
import re
import socket
from pathlib import Path

import cv2
import numpy as np
import pytest

from scrd_fast.data import listing
from scrd_fast.data.decode.read import NAMES, is_known
from scrd_fast.errors import DataError
from tests.support.pictures import read_image


def list_images(where):
    return listing.list_images(where, is_known, NAMES)


def picture() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (37, 51, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), image)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{reason}"):
        read_image(path)


def fill(root: Path, *names: str, content: bytes = b"text") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def names(root: Path, paths: list[Path]) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


@pytest.mark.filterwarnings("error")
def test_list_images_walks_and_sorts(tmp_path):
    fill(tmp_path, "b.PNG", "a.jpg", "deep/er/c.tif", "deep/d.JPEG", "e.bmp", "f.tiff")
    (tmp_path / "folder.png").mkdir()
    found = list_images(tmp_path)
    assert names(tmp_path, found) == ["a.jpg", "b.PNG", "deep/d.JPEG", "deep/er/c.tif", "e.bmp",
                                      "f.tiff"]
    assert list_images(str(tmp_path)) == found


@pytest.mark.filterwarnings("error")
def test_files_of_the_system_are_no_images(tmp_path):
    root = tmp_path / ".hidden" / "__MACOSX"  # what the user names is not looked at
    fill(root, "a.png", "b/a.png")
    for folder in ("", "b/"):
        fill(root, *(folder + name for name in (
            "._a.png", ".DS_Store", ".hidden.png", ".git/a.png", "__MACOSX/a.png", "Thumbs.db",
            "thumbs.db", "desktop.ini", "DICOMDIR", "$RECYCLE.BIN/a.png", "@eaDir/a.png",
            "lost+found/a.png", "System Volume Information/a.png")))
    assert names(root, list_images(root)) == ["a.png", "b/a.png"]
    assert list_images([root / "._a.png"]) == [root / "._a.png"]


def test_what_is_left_out_is_told_in_one_warning(tmp_path):
    fill(tmp_path, "a.png", "x.webp", "x.svs", "y.SVS", "x.mgh.gz", "z.gz", "sub/x.gif", "IM0001",
         "1.2.840.113619.2", "notes.txt", content=b"something")
    with pytest.warns(UserWarning, match="skipped") as told:
        assert names(tmp_path, list_images(tmp_path)) == ["a.png"]
    (line,) = [str(warning.message) for warning in told]
    assert line.startswith("skipped 9 files that are no DICOM, NIfTI, PNG, JPEG, TIFF or BMP: ")
    for kind in ("2 .svs", "2 without suffix", "1 .webp", "1 .mgh.gz", "1 .gz", "1 .gif", "1 .txt"):
        assert kind in line
    assert line.endswith(f"{tmp_path / 'IM0001'}, {tmp_path / 'notes.txt'} and 6 more)")


def test_many_kinds_and_places_still_give_one_line(tmp_path):
    for place in ("one", "two"):
        fill(tmp_path / place, "a.png", *(f"x.k{i}" for i in range(12)))
    with pytest.warns(UserWarning, match="skipped") as told:
        found = list_images([tmp_path / "two", tmp_path / "one", tmp_path / "none.png"])
    assert names(tmp_path, found) == ["two/a.png", "one/a.png", "none.png"]
    (line,) = [str(warning.message) for warning in told]
    assert "skipped 24 files" in line
    assert "2 .k5, 8 others (" in line


@pytest.mark.filterwarnings("error")
def test_content_makes_an_image_of_a_file_without_its_suffix(tmp_path):
    for suffix in (".png", ".jpg", ".tif", ".bmp"):
        path = write(tmp_path / f"a{suffix}", picture())
        path.rename(tmp_path / f"a_{suffix[1:]}")
        write(path, picture()).rename(tmp_path / f"a{suffix}.0001")
    found = list_images(tmp_path)
    assert len(found) == 8
    for path in found:
        read_image(path)


@pytest.mark.filterwarnings("error")
def test_links_to_folders_are_followed_each_folder_once(tmp_path):
    root, far = tmp_path / "root", tmp_path / "far"
    fill(far, "sub/f.png")
    fill(root, "a.png", "b/b.png")
    (far / "back").symlink_to(root)
    (root / "a_link").symlink_to(root / "b")  # sorts before b
    (root / "loop").symlink_to(root)
    (root / "b" / "up").symlink_to("..")
    (root / "far").symlink_to(far)
    (root / "c.png").symlink_to(root / "a.png")
    assert names(root, list_images(root)) == ["a.png", "b/b.png", "c.png", "far/sub/f.png"]
    assert names(root / "far", list_images(root / "far"))[0] == "back/a.png"


def test_dangling_links_are_errors_by_name(tmp_path):
    write(tmp_path / "a.png", picture())
    for name in ("b.png", "patients", "notes.txt"):
        (tmp_path / name).symlink_to(tmp_path / "gone")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    found = list_images(tmp_path)
    assert names(tmp_path, found) == ["a.png", "b.png", "notes.txt", "patients", "self.png"]
    for path in found[1:]:
        refused(path, "cannot be read: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_must_not_be_read_is_an_error_by_name(tmp_path):
    fill(tmp_path, "a.png", "b.dat", "closed/c.png")
    for name in ("a.png", "b.dat", "closed"):
        (tmp_path / name).chmod(0)
    try:
        found = list_images(tmp_path)
        assert names(tmp_path, found) == ["a.png", "b.dat", "closed"]
        for path in found:
            refused(path, "cannot be read: Permission denied")
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_pipes_and_sockets_are_never_opened(tmp_path, monkeypatch):
    write(tmp_path / "a.png", picture())
    os.mkfifo(tmp_path / "b.png")
    os.mkfifo(tmp_path / "c")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # the name of a socket is short
        server.bind("d.png")
    with pytest.warns(UserWarning, match=r"skipped 3 files.*: 2 \.png, 1 without suffix"):
        assert list_images(tmp_path) == [tmp_path / "a.png"]
    for path in (tmp_path / "b.png", tmp_path / "d.png", Path("/dev/zero")):
        refused(path, "cannot be read: not a file but a pipe, socket or device")


def test_list_images_of_a_file_and_of_paths(tmp_path):
    (tmp_path / "a.dat").touch()
    assert list_images(tmp_path / "a.dat") == [tmp_path / "a.dat"]
    assert list_images(["z.png", Path("a.png")]) == [Path("z.png"), Path("a.png")]


def test_list_images_of_nothing(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: expected DICOM, NIfTI,"
                                         r" .* got none; skipped 1 file that is no .*: 1 \.txt"):
        list_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected .* below it, got none$"):
        list_images([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"none: expected a folder of images or an image file"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError):
        list_images([])
