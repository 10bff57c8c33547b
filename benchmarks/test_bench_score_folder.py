"""A folder of JPEGs to a table of scores, as `scrd-fast score` makes it, against the engine alone.

That is given images which are in memory. Scores are held against each other before anything is
timed.
"""

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import scrd_fast
from benchmarks.judge import judge
from benchmarks.models import engine_file, pictures
from benchmarks.size import QUICK
from benchmarks.timing import clock, record, repeat, time_in_turn
from scrd_fast.backends.registry import native_precisions
from scrd_fast.data.to_score import find_to_score
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import load_engine
from scrd_fast.report.scores import score_files
from scrd_fast.report.tables import open_scores
from scrd_fast.spec import DecodingRule

FILES = 16 if QUICK else 1000
SIDE = 512
ROUNDS = 1
WANTED = 0.95  # of the engine's own rate


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With some noise: 70 KB each."""
    place = tmp_path_factory.mktemp("jpegs")
    rng = np.random.default_rng(0)
    images = pictures(SIDE, 16)
    for number in range(FILES):
        noisy = images[number % 16] + rng.normal(0, 6, (SIDE, SIDE, 3))
        cv2.imwrite(str(place / f"{number:04d}.jpg"), np.clip(noisy, 0, 255).astype(np.uint8),
                    [cv2.IMWRITE_JPEG_QUALITY, 90])
    return place


def score_folder(engine: Engine, place: Path, out: Path) -> None:
    found = find_to_score([place])
    with open_scores(out, "csv") as write:
        assert score_files(engine, found, write) == {}


def test_folder_against_engine(
    benchmark: Any, checkpoint: Path, jpegs: Path, tmp_path: Path
) -> None:
    precision = native_precisions("openvino")[0]
    out = tmp_path / "scores.csv"
    with load_engine(engine_file(checkpoint, precision)) as engine:
        images = np.stack([image.pixels for image in scrd_fast.read_images(
            sorted(jpegs.iterdir())[:16], DecodingRule())])

        def score_memory() -> None:
            for _ in engine.stream((images[k % 16] for k in range(FILES)), maps=False):
                pass

        score_folder(engine, jpegs, out)
        with out.open() as file:
            scores = [float(row["score"]) for row in csv.DictReader(file)]
        assert len(scores) == FILES
        np.testing.assert_allclose(scores[:16], engine.score(images).scores, rtol=1e-5)
        times = time_in_turn([clock(lambda: score_folder(engine, jpegs, out)),
                              clock(score_memory)], ROUNDS)
        ratio = record(benchmark, f"{FILES} JPEGs of {SIDE} px, {precision}",
                       "the engine, of images in memory", times)
        judge(benchmark, ratio, WANTED)
        repeat(benchmark, lambda: engine.score(images[:1]), 12)
