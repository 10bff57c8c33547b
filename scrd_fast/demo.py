"""The main job end to end on the demo set: train, build an engine, calibrate, score new images.

Training, validation and test are different subjects. Everything is chosen on the validation
part; the test part is made, opened and scored once, at the end.
"""

import json
import os
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scrd_fast.backends.registry import check_precision, choose_backend
from scrd_fast.building.build import build_engine
from scrd_fast.data.demo_brain import SIZE, DemoImages, make_images
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.engine.engine import Engine
from scrd_fast.engine.load import load_engine
from scrd_fast.engine.stream import Scored
from scrd_fast.evaluation.calibrate import calibrate
from scrd_fast.files import atomic_write, check_writable
from scrd_fast.machine import pytorch_has_bf16
from scrd_fast.metrics.ranking import auroc
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.model.scrd import Teacher, new_model
from scrd_fast.model.teacher_weights import load_teacher
from scrd_fast.progress import duration, show_progress
from scrd_fast.reference.anomaly_map import combine_distances
from scrd_fast.report.overlays import write_overlays
from scrd_fast.report.rows import ScoreRow, add_results
from scrd_fast.report.run_folder import collect_run, read_run
from scrd_fast.report.run_report import write_report
from scrd_fast.report.tables import open_scores
from scrd_fast.spec import ScoringSpec
from scrd_fast.timing.measure import latency_ms
from scrd_fast.torch_state import own_state, seeded
from scrd_fast.training.batches import autocast
from scrd_fast.training.config import PretrainConfig
from scrd_fast.training.convolution import part_weight_gradients
from scrd_fast.training.loop import train
from scrd_fast.training.pretrain import pretrain_teacher
from scrd_fast.training.prior import fit_prior
from scrd_fast.training.run import state_path

NOTE = ("The anatomy is real (MNI152 T1 template); the subjects are synthetic warps of that one"
        " brain, and the lesions are synthetic.")
SUBJECTS = {"train": 100, "validation": 20, "test": 60}
SLICES = 10
OVERLAYS = 12
RATE = 0.05  # of false alarms, that decisions are calibrated for
BACKBONE = "resnet18"
REPORT = "report.html"

# Chosen on validation subjects; docs/method.md shows what was tried. Half of what the teacher
# learns to see are pieces of other normal images: tissue that is normal, but not there.
PRETRAIN: dict[str, Any] = {
    "steps": 2000,
    "coarse_steps": 0,
    "noise": replace(PretrainConfig().noise, mixture=(("simplex", 1.0), ("paste", 1.0))),
}
TRAIN: dict[str, Any] = {
    "steps": 160,
    "weighting": "none",
    "reduction": "max",
    "blur_sigma": 2.0,
    "schedule": "cosine",
    "validate_every": 80,
    "noise": NoiseConfig(strength=0.8, max_share=0.25, channels="shared"),
}


def subjects(part: str, seed: int) -> range:
    """Seeds of the subjects of a part; no two parts or demo seeds share one."""
    first = 10_000_000 + 1_000_000 * seed + 100_000 * list(SUBJECTS).index(part)
    return range(first, first + SUBJECTS[part])


@dataclass(frozen=True)
class DemoResult:
    """Where the files are, and the summary as written to summary.json."""

    folder: Path
    summary: dict[str, Any]


# Time of a teacher's step with its noise and update, of one at half the size, and of a student's
# step, in times of a teacher's pass forth and back; and of all else, in times of one in fp32.
TEACHER_COST, COARSE_COST, STUDENT_COST, REST_COST = 1.2, 0.32, 2.7, 380


def training_precision() -> str:
    """bf16 autocast where the CPU computes in it, which halves the time of a step, else fp32."""
    return "bf16" if pytorch_has_bf16() else "fp32"


@own_state()
def run_demo(
    out: str | os.PathLike[str], *, teacher: str = "pretrain", seed: int = 0,
    precision: str = "auto", progress: bool = True,
) -> DemoResult:
    """Run the demo and write everything below `out`.

    teacher: "pretrain" (made from the demo's own normal images), "imagenet", or a file as
    `train` takes it. precision: of the engine. Raises what training and building raise.
    """
    check_precision(choose_backend("auto", None), precision)  # before minutes of training
    began = time.perf_counter()
    folder = Path(out)
    check_writable(folder, "out", folder=True)
    trained_in = training_precision()
    if progress:
        print(f"{NOTE}\n{_plan(pretrain=teacher == 'pretrain')}", file=sys.stderr)
    trained_on, held_out = _make("train", seed, progress), _make("validation", seed, progress)
    normal, held = trained_on.images, held_out.images

    if teacher == "pretrain":
        teacher = str(pretrain_teacher(
            normal, folder / "teacher.safetensors", progress=progress, backbone=BACKBONE,
            input_size=normal.shape[1], seed=seed, precision=trained_in, **PRETRAIN))
    checkpoint = train(
        normal, folder / "model.safetensors", validation=held, progress=progress,
        backbone=BACKBONE, teacher=teacher, input_size=normal.shape[1], seed=seed,
        precision=trained_in, **TRAIN)
    state_path(folder / "model.safetensors").unlink()  # 200 MB, and the demo is not gone on with
    prior = fit_prior(
        folder / "model.safetensors", normal, validation=held, seed=seed,
        patients=list(map(str, trained_on.subjects)),
        validation_patients=list(map(str, held_out.subjects)), progress=progress)
    with show_progress("engine", enabled=progress) as step:
        engine = build_engine(folder / "model.safetensors", precision=precision, images=held,
                              progress=step)
        engine.close()
        decisions = calibrate(engine.path, held, fpr=RATE, progress=step)
    engine = load_engine(engine.path)

    test = _make("test", seed, progress)
    names = [f"subject{s - subjects('test', seed)[0]:02d}_slice{i:03d}"
             for i, s in enumerate(test.subjects)]
    scored = _score_test(names, test, engine, folder)
    scores, p_values = (np.array(column) for column in zip(
        *((each.score, each.p_value) for each in scored), strict=True))
    p_normal, p_anomalous = (p_values[test.labels == label] for label in (0, 1))
    shown = np.linspace(0, len(names) - 1, OVERLAYS).astype(int)
    write_overlays(folder / "overlays", [names[i] for i in shown],
                   [test.images[i] for i in shown], np.stack([scored[i].map for i in shown]),
                   scale=decisions.maps.scale if decisions.maps else None)

    summary = {
        "auroc": auroc(test.labels, scores),
        "auroc_without_prior": auroc(test.labels, _without_prior(checkpoint, test, scored))
                               if prior.written else None,
        "prior": {"written": prior.written, "gain_synthesised": prior.gain,
                  "components": prior.prior.components},
        "auroc_untrained": auroc(test.labels, _untrained_scores(checkpoint.spec, test, seed)),
        "auroc_intensity": auroc(test.labels, intensity_scores(normal, test.images)),
        "auroc_validation_synthesised": checkpoint.metrics["auroc_synthesised"],
        "false_alarms": {f"{rate:g}": float((p_normal <= rate).mean())
                         for rate in (0.01, RATE, 0.1)},
        "found": float((p_anomalous <= RATE).mean()),
        "calibration_images": len(decisions.normal_scores),
        "latency_ms": latency_ms(engine, test.images),
        "teacher": checkpoint.config.teacher,
        "precision": engine.manifest.precision,
        "backend": engine.manifest.backend,
        "seconds": time.perf_counter() - began,
        "seed": seed,
        "scale_weights": np.mean([each.scale_weights for each in scored], axis=0).tolist(),
        "test_images": {"normal": int((test.labels == 0).sum()),
                        "anomalous": int((test.labels == 1).sum())},
        "note": NOTE,
    }
    with atomic_write(folder / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n")
    return DemoResult(folder, summary)


def _score_test(
    names: list[str], test: DemoImages, engine: Engine, folder: Path
) -> list[Scored]:
    """What the engine gives for each test image; writes the table of scores, the run, and its
    report."""
    scored = []
    with (open_scores(folder / "scores.csv", "csv") as write,
          collect_run(folder / "run", engine, f"test subjects of the demo. {NOTE}") as add):
        for item in engine.stream(test.images, distances=True):
            name, label = names[item.index], int(test.labels[item.index])
            row = add_results(
                ScoreRow(name, patient=name.partition("_")[0], label=label,
                         group="lesion" if label else None),
                item.score, item.scale_weights, item.p_value, item.anomalous)
            write(row)
            add(row, item.image, item.map, item.distances)
            scored.append(item)
    write_report(read_run(folder / "run"), folder / REPORT, title="The demo's test subjects")
    return scored


@dataclass(frozen=True)
class Pace:
    """Seconds of a teacher's pass forth and back at the demo's size, in the precision of training
    and in fp32."""

    training: float
    fp32: float

    @classmethod
    def measured(cls) -> "Pace":
        """That of this machine."""
        fp32 = time_pass("fp32")
        precision = training_precision()
        return cls(fp32 if precision == "fp32" else time_pass(precision), fp32)


def time_pass(precision: str) -> float:
    """Seconds of a teacher's pass forth and back at the demo's size, the best of three."""
    side, batch = SIZE, PretrainConfig().batch_size
    pixels = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    with seeded(0):
        teacher = Teacher(BACKBONE)
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    part_weight_gradients(teacher, precision)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        with autocast(torch.device("cpu"), precision):
            loss = sum(f.float().mean() for f in teacher(
                pixels.contiguous(memory_format=torch.channels_last)))
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _plan(*, pretrain: bool) -> str:
    """What the demo will do, and about how long that takes here."""
    coarse, steps = PRETRAIN["coarse_steps"] if pretrain else 0, PRETRAIN["steps"] * pretrain
    pace = Pace.measured()
    seconds = REST_COST * pace.fp32 + pace.training * (
        TEACHER_COST * (steps - coarse) + COARSE_COST * coarse + STUDENT_COST * TRAIN["steps"])
    taught = f"a teacher for {steps} steps, " if pretrain else ""
    return (f"Trains {taught}a student for {TRAIN['steps']} steps, builds an engine, and scores"
            f" {SUBJECTS['test'] * SLICES} images of other subjects."
            f" About {duration(seconds)} on this machine.")


def print_summary(result: DemoResult) -> None:
    """The summary as a short table, and where the files are."""
    s = result.summary
    table = Table(title="scrd-fast demo", title_justify="left")
    table.add_column("figure")
    table.add_column("value")
    rows = {
        "test AUROC": f"{s['auroc']:.3f}",
        "  without its prior": "no prior was worth it" if s["auroc_without_prior"] is None else (
            f"{s['auroc_without_prior']:.3f}"),
        "  untrained model": f"{s['auroc_untrained']:.3f}",
        "  plain intensity": f"{s['auroc_intensity']:.3f}",
        f"false alarms at {RATE:.0%}": f"{s['false_alarms'][f'{RATE:g}']:.1%} of the normal test"
                                        " images",
        "anomalies found": f"{s['found']:.0%}",
        "latency per image": f"{s['latency_ms']:.1f} ms ({s['backend']}, {s['precision']})",
        "test images": f"{s['test_images']['normal']} normal,"
                       f" {s['test_images']['anomalous']} anomalous",
        "teacher": s["teacher"],
        "time": f"{s['seconds']:.0f} s",
    }
    for name, value in rows.items():
        table.add_row(name, escape(value))
    console = Console()
    console.print(table)
    console.print(NOTE)
    for name in ("model.safetensors", "model.scrd", "scores.csv", "overlays", "summary.json",
                 "run", REPORT):
        console.print(f"  {result.folder / name}", soft_wrap=True, highlight=False,
                      markup=False)


def intensity_scores(normal: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Baseline: root mean square distance (grey levels) to the mean normal image, (N,)."""
    difference = images.astype(np.float64) - normal.mean(axis=0)
    return np.sqrt((difference**2).mean(axis=(1, 2)))


def _untrained_scores(spec: ScoringSpec, test: DemoImages, seed: int) -> torch.Tensor:
    """Baseline: the same model, teacher included, with its initial random weights."""
    model = new_model(BACKBONE, seed)
    load_teacher(model, "random")
    result, _ = score_images(model, spec, test.images, maps=False)
    return result.score(spec)


def _without_prior(checkpoint: Checkpoint, test: DemoImages, scored: list[Scored]) -> torch.Tensor:
    """The scores of the model as it was trained: by the engine, or by the reference model where the
    engine hands out no distances, on GPUs."""
    columns = list(zip(*(each.distances for each in scored if each.distances), strict=True))
    if columns:
        distances = [torch.from_numpy(np.stack(column)) for column in columns]
        weights = torch.from_numpy(np.stack([each.scale_weights for each in scored]))
        result = combine_distances(distances, weights, checkpoint.spec, maps=False)
    else:
        result, _ = score_images(checkpoint.model, checkpoint.spec, test.images, maps=False)
    return result.score(checkpoint.spec)


def _make(part: str, seed: int, progress: bool) -> DemoImages:
    share = 0.5 if part == "test" else 0.0
    what = f"{part} subjects"
    images: list[DemoImages] = []
    with show_progress(what, enabled=progress) as step:
        for done, subject in enumerate(seeds := subjects(part, seed)):
            step(done, len(seeds), what)
            images.append(make_images([subject], SLICES, anomalous_share=share))
    return DemoImages(*(np.concatenate([getattr(one, f.name) for one in images])
                        for f in fields(DemoImages)))
