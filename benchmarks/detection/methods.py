"""The methods as data: how the teacher is made, how the model is trained, what is done with it
afterwards; and the baselines.

A further method is a line of METHODS. Nothing here sees a test image before it is fitted.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from benchmarks.detection.autoencoder import train_autoencoder
from benchmarks.detection.data_sets import Images, Normals
from benchmarks.detection.feature_baselines import Padim, PatchCore, make_patches, stack_scales
from benchmarks.detection.teachers import Teachers
from scrd_fast import demo
from scrd_fast.data.dataset import ImageSet
from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.files import atomic_write
from scrd_fast.metrics.ranking import auroc
from scrd_fast.model.checkpoint import load_checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.model.scrd import Scales, Teacher, new_model
from scrd_fast.model.teacher_weights import load_teacher
from scrd_fast.ops.preprocess import to_pixels
from scrd_fast.reference.preprocess import normalise
from scrd_fast.spec import ScoringSpec
from scrd_fast.training.evaluation import Validation, normal_validation
from scrd_fast.training.loop import train
from scrd_fast.training.prior import fit_prior
from scrd_fast.training.run import state_path

BATCH = 16  # of images that are scored together
# Which checkpoint training keeps (docs/method.md): rows of another rule are of other models.
KEPT = "the last within a standard error of the largest"


class Scored(NamedTuple):
    """scores (N,) and maps (N, S, S), float32; larger is more anomalous."""

    scores: NDArray[Any]
    maps: NDArray[np.float32]


class Fitted(NamedTuple):
    """score: from images (N, S, S); seconds: of all training for it, the teacher's included."""

    score: Callable[[Images], Scored]
    seconds: float


@dataclass(frozen=True)
class Job:
    """What a method is fitted on. budget: factor of all steps; folder: for its files."""

    normals: Normals
    side: int
    seed: int
    budget: float
    teachers: Teachers
    folder: Path

    @property
    def spec(self) -> ScoringSpec:
        """How baselines see pixels, and the demo's blur."""
        return ScoringSpec(input_size=self.side, blur_sigma=demo.TRAIN["blur_sigma"])


@dataclass(frozen=True)
class Method:
    """A way to find anomalies.

    what: it is, in a sentence of the page. teacher: fields of PretrainConfig, None without one.
    train: fields of TrainConfig, or options of a baseline. after: what is done with a checkpoint,
    from its path and the job to the path of another.
    """

    what: str
    fit: Callable[["Method", Job], Fitted]
    teacher: Mapping[str, Any] | None = field(default_factory=lambda: SIMPLEX_TEACHER)
    train: Mapping[str, Any] = field(default_factory=dict)
    after: Callable[[Path, Job], Path] | None = None

    def settings(self, side: int, budget: float) -> dict[str, Any]:
        """All that decides what is fitted, as JSON has it, with the steps of a budget."""
        rule = {"kept": KEPT} if self.fit is fit_model else {}
        return json_of({
            "side": side, "backbone": demo.BACKBONE,
            "teacher": None if self.teacher is None else scaled(self.teacher, budget),
            "train": scaled(self.train, budget),
            "after": self.after.__name__ if self.after else None, **rule})

    def seconds(self, budget: float, pace: demo.Pace) -> float:
        """About how long fitting and scoring take at 128 px, without the teacher."""
        steps = scaled(self.train, budget).get("steps", 0)
        step = (demo.STUDENT_COST * pace.training if self.fit is fit_model
                else AUTOENCODER_COST * pace.fp32)
        return SCORING_COST * pace.fp32 + steps * step


SCORING_COST, AUTOENCODER_COST = 150, 2.4  # of all test images, of a step: in passes in fp32
STEPS = ("steps", "coarse_steps", "validate_every")


def scaled(options: Mapping[str, Any], budget: float) -> dict[str, Any]:
    """The options with `budget` times as many steps, two at least."""
    return {name: max(2, round(value * budget)) if name in STEPS and value else value
            for name, value in options.items()}


def json_of(value: Any) -> Any:
    """Options as they are when they have been written to JSON and read; of a law of noise what is
    not by default, so that stored rows stay what they are where it learns something new."""
    def changed(each: Any) -> dict[str, Any]:
        if not isinstance(each, NoiseConfig):
            raise TypeError(f"expected an option that JSON has, got {type(each).__name__}")
        default = asdict(NoiseConfig())
        return {name: now for name, now in asdict(each).items() if now != default[name]}

    return json.loads(json.dumps(value, default=changed))


def fit_model(method: Method, job: Job) -> Fitted:
    """A student against the teacher, then what the method does afterwards."""
    path, seconds = trained(method, job)
    if method.after is not None:
        began = time.perf_counter()
        path = method.after(path, job)
        seconds += time.perf_counter() - began
    checkpoint = load_checkpoint(path)

    def score(images: Images) -> Scored:
        result, _ = score_images(checkpoint.model, checkpoint.spec, images, batch_size=BATCH)
        assert result.map is not None
        return Scored(result.score(checkpoint.spec).numpy(), result.map.numpy())

    return Fitted(score, seconds)


def trained(method: Method, job: Job) -> tuple[Path, float]:
    """The checkpoint of a method before what is done afterwards, and the seconds of all training
    for it. It is kept where other methods begin with the same."""
    assert method.teacher is not None
    alike = [each for each in METHODS.values()
             if each.fit is fit_model and (each.teacher, each.train) == (
                 method.teacher, method.train)]
    options = method.settings(job.side, job.budget) | {"after": None, "seed": job.seed}
    path = job.teachers.beside("model", options) if len(alike) > 1 else (
        job.folder / "model.safetensors")
    note = path.with_suffix(".json")  # written last: where it is the model is whole
    if not note.exists():
        teacher, before = job.teachers.get(scaled(method.teacher, job.budget))
        began = time.perf_counter()
        train(job.normals.train, path, validation=job.normals.validation, progress=False,
              backbone=demo.BACKBONE, teacher=str(teacher), input_size=job.side, seed=job.seed,
              precision=demo.training_precision(), **scaled(method.train, job.budget))
        state_path(path).unlink()
        with atomic_write(note) as temporary:
            seconds = before + time.perf_counter() - began
            temporary.write_text(json.dumps({"seconds": seconds}) + "\n")
    return path, float(json.loads(note.read_text())["seconds"])


def with_prior(path: Path, job: Job) -> Path:
    """The checkpoint with a normal map, where held-out images gain by it."""
    out, normals = job.folder / "prior.safetensors", job.normals
    report = fit_prior(
        path, normals.train, out=out, validation=normals.validation, seed=job.seed, progress=False,
        patients=normals.train_subjects, validation_patients=normals.validation_subjects)
    return out if report.written else path


def fit_intensity(method: Method, job: Job) -> Fitted:
    """The demo's: distance to the mean normal image."""
    began = time.perf_counter()
    mean = job.normals.train.mean(axis=0)

    def score(images: Images) -> Scored:
        maps = np.abs(images - mean).astype(np.float32)
        return Scored(demo.intensity_scores(job.normals.train, images), blurred(maps, job.spec))

    return Fitted(score, time.perf_counter() - began)


def fit_autoencoder(method: Method, job: Job) -> Fitted:
    """Whether the mean or the maximum of the error is the score is chosen on held-out normals
    against synthesised anomalies, as checkpoints are."""
    options, began = scaled(method.train, job.budget), time.perf_counter()
    noise = options.pop("noise")
    model = train_autoencoder(to_pixels(job.normals.train, job.spec), seed=job.seed, **options)

    def maps_of(pixels: Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            errors = [(model(x) - x).abs().mean(1) for x in pixels.split(BATCH)]
        return blurred(torch.cat(errors).numpy(), job.spec)

    held = judged(job, noise)
    maps = maps_of(held.pixels)
    best = max(("max", "mean"), key=lambda name: auroc(held.labels, reduced(maps, name)))

    def score(images: Images) -> Scored:
        found = maps_of(to_pixels(images, job.spec))
        return Scored(reduced(found, best), found)

    return Fitted(score, time.perf_counter() - began)


def fit_padim(method: Method, job: Job) -> Fitted:
    assert method.teacher is not None
    path, before = job.teachers.get(scaled(method.teacher, job.budget))
    began = time.perf_counter()
    eyes = Eyes(path, job.spec)
    padim = Padim((stack_scales(f) for f in eyes.see(job.normals.train)), seed=job.seed,
                  **method.train)

    def score(images: Images) -> Scored:
        distances = torch.cat([padim.distances(stack_scales(f)) for f in eyes.see(images)])
        maps = enlarged(distances, job.spec)
        return Scored(reduced(maps, "max"), maps)

    return Fitted(score, before + time.perf_counter() - began)


def fit_patchcore(method: Method, job: Job) -> Fitted:
    assert method.teacher is not None
    path, before = job.teachers.get(scaled(method.teacher, job.budget))
    began = time.perf_counter()
    eyes = Eyes(path, job.spec)
    patches = torch.cat([make_patches(f).permute(0, 2, 3, 1).flatten(0, 2)
                         for f in eyes.see(job.normals.train)])
    bank = PatchCore(patches, seed=job.seed, **method.train)

    def score(images: Images) -> Scored:
        parts = [bank.distances(make_patches(f)) for f in eyes.see(images)]
        distances, scores = (torch.cat(each) for each in zip(*parts, strict=True))
        return Scored(scores.numpy(), enlarged(distances, job.spec))

    return Fitted(score, before + time.perf_counter() - began)


@dataclass(frozen=True)
class Eyes:
    """The frozen teacher of a file, by itself."""

    path: Path
    spec: ScoringSpec

    @cached_property
    def teacher(self) -> Teacher:
        model = new_model(demo.BACKBONE, 0)
        load_teacher(model, str(self.path))
        return model.teacher

    def see(self, images: Images) -> Iterator[Scales]:
        """The three scales' features of images (N, S, S), in batches."""
        for pixels in to_pixels(images, self.spec).split(BATCH):
            with torch.no_grad():
                features: Scales = self.teacher(normalise(pixels, self.spec))
            yield features


def judged(job: Job, noise: NoiseConfig) -> Validation:
    """Held-out normals against the same with synthesised anomalies."""
    held = ImageSet(job.normals.validation, spec=job.spec)
    return normal_validation(held, np.arange(len(held)), job.spec, noise, job.seed)


def blurred(maps: NDArray[np.float32], spec: ScoringSpec) -> NDArray[np.float32]:
    """Maps (N, S, S) with the specification's blur."""
    return gaussian_filter(maps, (0, spec.blur_sigma, spec.blur_sigma), mode="reflect")


def enlarged(distances: Tensor, spec: ScoringSpec) -> NDArray[np.float32]:
    """Distances (N, h, w) at places of features as blurred maps (N, S, S)."""
    size = (spec.input_size, spec.input_size)
    maps = torch.nn.functional.interpolate(distances[:, None], size, mode="bilinear",
                                           align_corners=False)
    return blurred(maps[:, 0].numpy(), spec)


def reduced(maps: NDArray[np.float32], reduction: str) -> NDArray[np.float32]:
    """(N, S, S) -> scores (N,): the mean or the max."""
    scores: NDArray[np.float32] = getattr(maps, reduction)(axis=(1, 2))
    return scores


# The demo's recipe, which was chosen on validation subjects of the demo's set alone.
OURS: dict[str, Any] = demo.TRAIN
# What the published code does, but for its teacher (of ImageNet), its image side (256 px), its
# 40 000 steps, and its choice of the checkpoint by the test set.
PUBLISHED: Mapping[str, Any] = {
    "steps": OURS["steps"], "validate_every": OURS["validate_every"], "weighting": "feature",
    "reduction": "mean", "blur_sigma": 4.0, "schedule": "constant", "published_batchnorm": True,
    "noise": NoiseConfig(texture="shared")}
# A teacher that learns from simplex noise alone, as the demo's did when most rows were measured.
SIMPLEX_TEACHER: Mapping[str, Any] = {
    name: value for name, value in demo.PRETRAIN.items() if name != "noise"}
SHIFT, MIXED = (("shift", 1.0),), (("simplex", 1.0), ("shift", 1.0))
PATCHCORE, PADIM = {"share": 0.01, "dimensions": 64}, {"count": 100}
BASE = "published"  # what the others are held against

METHODS: Mapping[str, Method] = {
    "published": Method(
        "The published objective, noise and score (mean of the map), with the same teacher and as"
        " many steps as ours", fit_model, train=PUBLISHED),
    "published, max": Method(
        "The same, but the score is the maximum of the map", fit_model,
        train={**PUBLISHED, "reduction": "max"}),
    "ours": Method(
        "The demo's student: one weight for all scales, grey and stronger noise, maximum of the"
        " map", fit_model, train=OURS),
    "ours, prior": Method(
        "The same with a normal map, where held-out images gain by it", fit_model, train=OURS,
        after=with_prior),
    "published, pasted": Method(
        "The published objective with the demo's teacher: half of the patches that it learns to"
        " see are pieces of other normal images", fit_model, teacher=demo.PRETRAIN,
        train=PUBLISHED),
    "ours, pasted": Method(
        "The demo's student with the demo's teacher", fit_model, teacher=demo.PRETRAIN, train=OURS),
    "ours, pasted, prior": Method(
        "The demo's recipe: the same with a normal map, where held-out images gain by it",
        fit_model, teacher=demo.PRETRAIN, train=OURS, after=with_prior),
    "ours, scale": Method(
        "The demo's student with learned weights of the scales", fit_model,
        train={**OURS, "weighting": "scale"}),
    "ours, shift": Method(
        "The demo's student, trained against shifts of intensity instead of simplex noise",
        fit_model, train=OURS | {"noise": replace(OURS["noise"], mixture=SHIFT)}),
    "ours, mixed": Method(
        "The same against both, half of the images each", fit_model,
        train=OURS | {"noise": replace(OURS["noise"], mixture=MIXED)}),
    "ours, adapted": Method(
        "The same mixture, its weights and strengths adapted after each validation, of which there"
        " are eight", fit_model,
        train=OURS | {"noise": replace(OURS["noise"], mixture=MIXED), "adapt_noise": True,
                      "validate_every": OURS["steps"] // 8}),
    "ours, slim": Method(
        "The demo's student and bottleneck at half the width", fit_model,
        train={**OURS, "student": "slim"}),
    "PatchCore": Method(
        "A bank of 1 % of the normal patches of the same teacher's second and third scale, chosen"
        " after a random projection to 64 dimensions (our own short form of arXiv 2106.08265)",
        fit_patchcore, train=PATCHCORE),
    "PaDiM": Method(
        "A Gaussian per place of 100 channels of the same teacher's three scales (our own short"
        " form of arXiv 2011.08785)", fit_padim, train=PADIM),
    "PatchCore, pasted": Method(
        "PatchCore with the demo's teacher", fit_patchcore, teacher=demo.PRETRAIN,
        train=PATCHCORE),
    "PaDiM, pasted": Method(
        "PaDiM with the demo's teacher", fit_padim, teacher=demo.PRETRAIN, train=PADIM),
    "autoencoder": Method(
        "Four strided convolutions and back, of whose steps each takes about twice as long as one"
        " of the teacher in fp32; the absolute error", fit_autoencoder, teacher=None,
        train={"steps": 1600, "batch_size": 16, "learning_rate": 1e-3, "noise": OURS["noise"]}),
    "intensity": Method(
        "Distance of the grey levels to the mean normal image", fit_intensity, teacher=None),
}
