"""DICOM files of 512 x 512 through a stream, against the decoder alone.

A stream decodes ahead in threads and scores meanwhile. The decoder alone reads one file after the
other, as a loop over read_images does, or in as many threads as the stream. Scores are held against
those of the decoded images before anything is timed.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

import scrd_fast
from benchmarks.judge import judge
from benchmarks.models import engine_file, untrained
from benchmarks.size import QUICK
from benchmarks.timing import clock, record, repeat, time_in_turn
from scrd_fast.backends.registry import native_precisions
from scrd_fast.data.decode.ahead import decode_ahead
from scrd_fast.data.decode.read import read_file
from scrd_fast.model.checkpoint import load_checkpoint, save_checkpoint
from scrd_fast.spec import DecodingRule

FILES = 12 if QUICK else 999
ROUNDS = 3
WANTED = 0.9  # of the rate of the decoder, one file after the other
RULE = DecodingRule("window", (-1024.0, 1024.0))
KINDS = ("uncompressed", "RLE", "JPEG 2000")


def make_slice(rng: np.random.Generator) -> NDArray[np.uint16]:
    """12 bits, as smooth and as noisy as a CT slice: it compresses to half."""
    coarse = rng.uniform(400, 2400, (8, 8)).astype(np.float32)
    smooth = cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC)
    noise = cv2.GaussianBlur(rng.normal(0, 60, (512, 512)), (0, 0), 1)
    return np.clip(smooth + noise, 0, 4095).astype(np.uint16)


def write_file(path: Path, pixels: NDArray[np.uint16], kind: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = generate_uid()
    data.Rows = data.Columns = 512
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.RescaleSlope, data.RescaleIntercept = "1", "-1024"
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    if kind == "RLE":
        data.compress(RLELossless)
    elif kind == "JPEG 2000":
        import imagecodecs

        stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", bitspersample=12,
                                           reversible=True)
        data.PixelData = encapsulate([bytes(stream)])
        data["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = JPEG2000Lossless
    pydicom.dcmwrite(path, data)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A third of each kind, in turn."""
    folder = tmp_path_factory.mktemp("dicom")
    rng = np.random.default_rng(0)
    for number in range(FILES):
        write_file(folder / f"{number:04d}.dcm", make_slice(rng), KINDS[number % len(KINDS)])
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def engine(folder: Path) -> scrd_fast.Engine:
    """A small one: the files are what is timed."""
    made = load_checkpoint(untrained("resnet18", 64, folder))
    path = folder / "decode.safetensors"
    spec = dataclasses.replace(made.spec, decoding=RULE)
    save_checkpoint(dataclasses.replace(made, spec=spec), path)
    return scrd_fast.load_engine(engine_file(path, native_precisions("openvino")[0]))


def decode_alone(files: list[Path]) -> None:
    for path in files:
        assert read_file(path, RULE).error is None


def decode_in_threads(files: list[Path]) -> None:
    for decoded in decode_ahead(files, RULE):
        assert decoded.error is None


@pytest.mark.parametrize("kind", ["all three", *KINDS])
@pytest.mark.parametrize(("peer", "decode"), [
    ("decoder alone, a file after the other", decode_alone),
    ("decoder alone, in threads", decode_in_threads)])
def test_stream_against_decoder(
    benchmark: Any, engine: scrd_fast.Engine, files: list[Path], kind: str, peer: str,
    decode: Callable[[list[Path]], None],
) -> None:
    chosen = files if kind == "all three" else files[KINDS.index(kind)::len(KINDS)]

    def stream() -> None:
        for item in engine.stream(chosen, maps=False):
            assert item.error is None

    some = chosen[:6]
    images = [image.pixels for image in scrd_fast.read_images(some, RULE)]
    np.testing.assert_array_equal(engine.score(some).scores, engine.score(images).scores)
    times = time_in_turn([clock(stream), clock(lambda: decode(chosen))], ROUNDS)
    ratio = record(benchmark, f"{kind}, {len(chosen)} files", peer, times)
    print(f"{len(chosen) / np.median(times[:, 0]) * 1e3:.0f} files a second")
    wanted = WANTED if decode is decode_alone and kind == "all three" else None
    judge(benchmark, ratio, wanted)
    repeat(benchmark, stream, 1, warm_up=0)
