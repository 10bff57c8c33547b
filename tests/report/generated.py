"""Runs that were never scored: generated images with blobs, maps that find most of them, patients,
groups, volumes, files that failed, and names that are hostile to a page."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

import scrd_fast
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.engine_file import read_engine_file, write_engine_file
from scrd_fast.metrics.decisions import conformal
from scrd_fast.metrics.map_scale import MapScale
from scrd_fast.report.rows import ScoreRow, read_rows
from scrd_fast.report.run_folder import collect_run

SIDE = 64  # of the maps
HOSTILE = (
    '"><img src=x onerror=document.title="owned">.png', "</script><script>alert(1)</script>.png",
    "{{7*7}}{% for x in y %}.png", "it's \"quoted\" & <b>bold</b>.png", "<!--<script>.png",
    "\u202egnp.exe\u202c Grüße 画像 صورة.png", "\udce9\udcff.png", "javascript:alert(1)\n.png")
HOSTILE_GROUP = "tumour</option><script>alert(2)</script>"
HOSTILE_PATIENT = "DOE^JANE\"><svg onload=alert(3)>"


@dataclass(frozen=True)
class Made:
    """An image with what scoring would give."""

    row: ScoreRow
    image: NDArray | None
    map: NDArray | None
    distances: tuple[NDArray, NDArray, NDArray] | None


def calibrate_engine(path: Path, source: Path) -> Engine:
    """A copy of an engine file that has a calibration as of generated scores, loaded."""
    manifest, members = read_engine_file(source)
    rng = np.random.default_rng(5)
    scores = rng.gamma(6, 0.03, 199).astype(np.float32)
    weights = np.full((199, 3), 1 / 3, np.float32)
    decisions = replace(conformal(scores, weights, 0.05), maps=MapScale((0.12, 0.6), 0.5))
    write_engine_file(path, replace(manifest, calibration=decisions), members)
    return scrd_fast.load_engine(path)


def make_images(count: int, seed: int = 0, *, labelled: bool = True, height: int = 120,
                width: int = 150, slices: int = 12) -> Iterator[Made]:
    """Images of patients with one to four each, `slices` of a volume first, a tenth in colour."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((height, width)) / min(height, width) - 0.5
    patient, left = -1, 0
    for i in range(count):
        if left == 0:
            patient, left = patient + 1, int(rng.integers(1, 5)) if i >= slices else slices
        left -= 1
        label = int(rng.random() < 0.4)
        tissue = cv2.resize(rng.normal(0, 1, (9, 12)), (width, height),
                            interpolation=cv2.INTER_CUBIC)
        body = 1 / (1 + np.exp(25 * (np.hypot(x - 0.1, y) - rng.uniform(0.34, 0.42))))
        place, size = rng.uniform(-0.2, 0.2, 2), rng.uniform(0.04, 0.1)
        blob = np.exp(-((x - 0.1 - place[0]) ** 2 + (y - place[1]) ** 2) / (2 * size**2))
        bright = label * rng.uniform(0.02, 0.45)
        image = body * (0.35 + 0.07 * tissue + bright * blob) + rng.normal(0, 0.01, x.shape)
        image = image.clip(0, 1).astype(np.float32)
        if i % 10 == 9:
            image = np.stack([image, image * 0.6, image * 0.5], axis=2)
        noise = cv2.resize(rng.normal(0, 0.03, (12, 12)), (SIDE, SIDE),
                           interpolation=cv2.INTER_CUBIC)
        heat = np.abs(0.08 + noise + bright * cv2.resize(blob, (SIDE, SIDE)))
        heat = (heat * rng.uniform(0.7, 1.8)).astype(np.float32)
        distances = tuple(cv2.resize(heat, (SIDE // s,) * 2, interpolation=cv2.INTER_AREA) / 3
                          for s in (2, 4, 8))
        score = float(str(np.float32(heat.max())))
        weights = rng.dirichlet((4, 4, 4)).astype(np.float32)
        volume = i < slices
        yield Made(ScoreRow(
            "/data/set/volume.nii.gz" if volume else f"/data/set/part{patient % 3}/{i:04}.png",
            frame=i if volume else None, patient=f"SECRET-{patient}",
            study="1.2.840.1" if volume else None, label=label if labelled else None,
            group=("lesion", "bleeding")[i % 2] if label else None, score=score,
            p_value=float(str(np.float32(rng.uniform(0.001, 1)))),
            anomalous=score > 0.3, scale_weights=tuple(float(str(w)) for w in weights)),
            image, heat, distances)


def add_failures() -> Iterator[Made]:
    for i in range(3):
        path = f"/data/set/broken{i}.png"
        yield Made(ScoreRow(path, error=f"{path}: expected a picture, got other content"), None,
                   None, None)


def make_hostile(images: Iterator[Made]) -> Iterator[Made]:
    """The same under other names."""
    for made, name in zip(images, HOSTILE, strict=False):
        yield replace(made, row=replace(
            made.row, image=f"/data/set/{name}", frame=None, group=HOSTILE_GROUP,
            patient=HOSTILE_PATIENT))
    yield Made(ScoreRow("/data/set/</table><script>alert(4)</script>.png", error="<b>no</b>"),
               None, None, None)


def make_evaluation(folder: Path) -> dict:
    """What `evaluate` could have written of a run; only its counts and its AUROC are the run's."""
    rows = [row for row in read_rows(folder / "scores.jsonl") if row.score is not None]
    labels = [row.label for row in rows]
    area = roc_auc_score(labels, [row.score for row in rows])
    return {
        "engine": "/x/m.scrd", "threshold": {"value": 0.25, "source": "validation"},
        "parts": [{"level": "image", "group": None, "normal": labels.count(0),
                   "anomalous": labels.count(1), "patients": 9, "figures": {
                       "auroc": {"value": area, "interval": {
                           "low": 0.5, "high": 0.95, "limit": False}},
                       "best_f1": {"value": 1, "interval": None}}}],
        "pixels": {"aupro": {"value": 0.5, "interval": None}}, "p_values": {"0.05": 0.04},
        "specificity": 0.95, "patient_rule": "max", "remarks": ["/data/set/x.png: a remark"],
        "something": "of a later version"}


def write_run(folder: Path, engine: Engine, images: Iterator[Made], data: str = "generated",
              ) -> Path:
    with collect_run(folder, engine, data) as add:
        for made in images:
            add(made.row, made.image, made.map, made.distances)
    return folder
