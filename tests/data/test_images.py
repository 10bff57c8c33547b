"""Reading image files: bit depth and channel order kept, broken files refused by name."""

import os
import re
import socket
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from scrd_fast.data.images import list_images, read_all, read_image
from scrd_fast.errors import DataError


def picture(dtype: str = "uint8", colour: bool = True, side: int = 37) -> np.ndarray:
    rng = np.random.default_rng(1)
    shape = (side, side + 14, 3) if colour else (side, side + 14)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth_picture() -> np.ndarray:
    """What JPEG keeps: a red ramp to the right, a green one downwards, little blue."""
    y, x = np.indices((48, 64))
    return np.stack([x * 4, y * 5, np.full_like(x, 20)], axis=-1).astype(np.uint8)


def write(path: Path, image: np.ndarray, *options: int) -> Path:
    """Write an RGB or grey image with OpenCV, which wants BGR."""
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[:, :, ::-1], options)
    return path


@pytest.mark.parametrize("colour", [True, False], ids=["colour", "grey"])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tiff", "uint16"),
     (".bmp", "uint8")],
)
def test_lossless_files_keep_every_bit(tmp_path, suffix, colour, dtype):
    image = picture(dtype, colour)
    got = read_image(write(tmp_path / f"image{suffix}", image))
    assert got.dtype == image.dtype
    assert got.shape == image.shape or (suffix == ".bmp" and got.shape == (*image.shape, 3))
    assert np.array_equal(got, image if got.ndim == image.ndim else np.stack([image] * 3, -1))
    assert got.flags.c_contiguous


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg"])
def test_jpeg_in_rgb_order(tmp_path, suffix):
    got = read_image(write(tmp_path / f"image{suffix}", smooth_picture(),
                           cv2.IMWRITE_JPEG_QUALITY, 100))
    assert got.dtype == np.uint8
    assert got.shape == (48, 64, 3)
    # JPEG rounds, and halves the resolution of colour: a few grey levels on a ramp of 5.
    assert np.abs(got.astype(int) - smooth_picture()).max() <= 12


def test_grey_jpeg(tmp_path):
    got = read_image(write(tmp_path / "image.jpg", smooth_picture()[:, :, 0]))
    assert got.shape == (48, 64)


def test_one_pixel(tmp_path):
    pixel = np.array([[[1, 200, 30]]], np.uint8)
    assert read_image(write(tmp_path / "a.png", pixel)).tolist() == [[[1, 200, 30]]]


def test_the_suffix_does_not_matter(tmp_path):
    write(tmp_path / "image.png", picture())
    (tmp_path / "image.png").rename(tmp_path / "image.jpg")
    assert np.array_equal(read_image(tmp_path / "image.jpg"), picture())


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*{reason}"):
        read_image(path)


@pytest.mark.parametrize("kept", [0.05, 0.4, 0.8, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("side", [37, 200])
def test_truncated_files(tmp_path, side, suffix, kept):
    whole = write(tmp_path / f"whole{suffix}", picture(side=side)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(kept * len(whole))])
    refused(path)


def test_truncated_jpeg_with_a_thumbnail(tmp_path):
    """The thumbnail ends with the marker that also ends the picture."""
    whole = write(tmp_path / "whole.jpg", picture()).read_bytes()
    thumbnail = write(tmp_path / "small.jpg", picture(side=4)).read_bytes()
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    full, cut = tmp_path / "full.jpg", tmp_path / "cut.jpg"
    data = whole[:2] + segment + whole[2:]
    full.write_bytes(data)
    assert np.array_equal(read_image(full), read_image(tmp_path / "whole.jpg"))
    cut.write_bytes(data[: -len(whole) // 3])
    refused(cut)


def test_every_damaged_byte_of_a_png(tmp_path):
    """Each chunk has a checksum, so no flipped byte gives another picture."""
    whole = write(tmp_path / "whole.png", picture(side=3)).read_bytes()
    path = tmp_path / "damaged.png"
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0x10
        path.write_bytes(data)
        refused(path)


def test_png_whose_pixels_end_early(tmp_path):
    """Whole chunks with right checksums around too few rows: a decoder fills in the rest."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (struct.pack(">I", len(data)) + kind + data
                + struct.pack(">I", zlib.crc32(kind + data)))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    for rows in (8, 3):
        pixels = zlib.compress(bytes([0] + [200] * 8) * rows)
        path = tmp_path / f"{rows}.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels)
                         + chunk(b"IEND", b""))
    assert np.array_equal(read_image(tmp_path / "8.png"), np.full((8, 8), 200))
    refused(tmp_path / "3.png")


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an image" * 50, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9",
                b"II*\0" + bytes(40), b"BM" + bytes(60), bytes(1000)],
)
def test_garbage(tmp_path, content):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    refused(path)


def test_missing_file_and_folder(tmp_path):
    refused(tmp_path / "none.png", "cannot be read: No such file")
    (tmp_path / "folder.png").mkdir()
    refused(tmp_path / "folder.png", "cannot be read: ")


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
            "thumbs.db", "desktop.ini", "$RECYCLE.BIN/a.png", "@eaDir/a.png", "lost+found/a.png",
            "System Volume Information/a.png")))
    assert names(root, list_images(root)) == ["a.png", "b/a.png"]
    assert list_images([root / "._a.png"]) == [root / "._a.png"]


def test_what_is_left_out_is_told_in_one_warning(tmp_path):
    fill(tmp_path, "a.png", "x.webp", "x.dcm", "y.DCM", "x.nii.gz", "z.gz", "sub/x.gif", "IM0001",
         "1.2.840.113619.2", "notes.txt", content=b"something")
    with pytest.warns(UserWarning, match="skipped") as told:
        assert names(tmp_path, list_images(tmp_path)) == ["a.png"]
    (line,) = [str(warning.message) for warning in told]
    assert line.startswith("skipped 9 files that are no PNG, JPEG, TIFF or BMP: ")
    for kind in ("2 .dcm", "2 without suffix", "1 .webp", "1 .nii.gz", "1 .gz", "1 .gif", "1 .txt"):
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
    assert len(list_images(tmp_path)) == 8
    assert len(read_all(tmp_path)) == 8


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
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}: expected PNG, JPEG,"
                                         r" .* got none; skipped 1 file that is no PNG.*: 1 \.txt"):
        list_images(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: expected .* below it, got none$"):
        list_images([tmp_path / "empty"])
    with pytest.raises(DataError, match=r"none: expected a folder of images or an image file"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError):
        list_images([])


def test_read_all_names_the_bad_file(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.png", picture(side=5 + i))
    assert [image.shape for image in read_all(tmp_path)] == [(5, 19, 3), (6, 20, 3), (7, 21, 3)]
    (tmp_path / "1.png").write_bytes(b"garbage")
    with pytest.raises(DataError, match=r"1\.png: "):
        read_all(tmp_path)
