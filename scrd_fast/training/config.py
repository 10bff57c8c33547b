"""TrainConfig and PretrainConfig: every default, and what each field is.

The command line makes its options of them. Loads no PyTorch: `scrd-fast train --help` is quick.
"""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.data.noise_presets import PRESETS
from scrd_fast.errors import expect
from scrd_fast.model.backbones import BACKBONES, STUDENTS, backbone_of, divisor_of
from scrd_fast.records import is_whole
from scrd_fast.spec import DecodingRule, ScoringSpec

SCHEDULES = ("constant", "cosine")
SELECTIONS = ("validation", "published_test")
# The name of PyTorch's dtype for each precision, None where there is no autocast.
AUTOCAST = {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}

# Fields that both configurations have.
_BACKBONE = {"help": f"{', '.join([*BACKBONES][:-1])} or {[*BACKBONES][-1]}."}
_INPUT_SIZE = {"help": "Side of the network input in pixels, divisible by 32."}
_STEPS = {"help": "Training steps."}
_PRECISION = {"help": "fp32, or autocast to bf16 or fp16."}
_SEED = {"help": "Of everything random: weights, order of the images, anomalies."}
_NOISE = {"help": "Synthetic anomalies", "prefix": "noise_", "presets": {
    name: preset.noise for name, preset in PRESETS.items()}}
_DECODING = {"help": "How files become images", "prefix": ""}


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the defaults are the published ones unless a field says otherwise.

    Each field's "help" says what it is. input_size, decoding, weighting, blur_sigma and reduction
    go into the ScoringSpec, which has their defaults.
    """

    backbone: str = field(default="wide_resnet50_2", metadata=_BACKBONE)
    teacher: str = field(default="imagenet", metadata={
        "help": "imagenet, random, or a file (torchvision's .pth, or of pretrain-teacher)."})
    student: str = field(default="full", metadata={
        "help": f"{' or '.join(STUDENTS)}, which has half the channels, as has the bottleneck:"
                " less to compute for a score."})
    input_size: int = field(default=ScoringSpec.input_size, metadata=_INPUT_SIZE)
    decoding: DecodingRule = field(default_factory=DecodingRule, metadata=_DECODING)
    weighting: str = field(default=ScoringSpec.weighting, metadata={
        "help": "What the scale weights multiply: none, scale (the distances) or feature (the"
                " features)."})
    weight_barrier: float = field(default=0.1, metadata={
        "help": "Strength of -mean(log(3 w)), which keeps the scale weights from collapsing onto"
                " one scale; only used with the weighting scale."})
    blur_sigma: float = field(default=ScoringSpec.blur_sigma, metadata={
        "help": "Sigma in pixels of the Gaussian over the map; 0 is none."})
    reduction: str = field(default=ScoringSpec.reduction, metadata={
        "help": "Image score: mean or max of the map."})
    steps: int = field(default=40_000, metadata=_STEPS)
    batch_size: int = field(default=16, metadata={"help": "Images per step and process."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of Adam."})
    betas: tuple[float, float] = field(default=(0.5, 0.999), metadata={
        "help": "Of Adam: how much its means of gradients and of their squares keep per step."})
    schedule: str = field(default="constant", metadata={
        "help": "constant (published), or cosine after a short warm-up."})
    precision: str = field(default="fp32", metadata=_PRECISION)
    noise: NoiseConfig = field(default_factory=NoiseConfig, metadata=_NOISE)
    adapt_noise: bool = field(default=False, metadata={
        "help": "After each validation move the strength and weight of each kind of anomaly so that"
                " held-out images with it stay just detectable, at an AUROC of 0.9."})
    seed: int = field(default=111, metadata=_SEED)
    published_batchnorm: bool = field(default=False, metadata={
        "help": "Also run the student on the noisy images, as published, which only moves its"
                " BatchNorm statistics."})
    validate_every: int = field(default=500, metadata={
        "help": "Steps between validations, each of which also saves the state for resuming."})
    validation_share: float = field(default=0.1, metadata={
        "help": "Share of the images that is held out where no others are given to validate on."})
    selection: str = field(default="validation", metadata={
        "help": "validation picks the checkpoint by held-out normals against synthesised anomalies,"
                " the last whose AUROC is within a standard error of the largest; published_test by"
                " the labelled test set, as the published code does,"
                " which makes the test figure optimistic."})

    def __post_init__(self) -> None:
        divisor_of(self.student)  # raises where there is none
        _check_whole(self, "steps", "batch_size", "validate_every")
        _check_common(self)
        expect(isinstance(self.betas, tuple) and len(self.betas) == 2
               and all(isinstance(b, Real) and 0 <= b < 1 for b in self.betas),
               "betas", "two numbers from 0, below 1", self.betas)
        expect(0 < self.validation_share < 1, "validation_share", "above 0 and below 1",
               self.validation_share)
        expect(self.schedule in SCHEDULES, "schedule", f"one of {SCHEDULES}", repr(self.schedule))
        expect(self.selection in SELECTIONS, "selection", f"one of {SELECTIONS}",
               repr(self.selection))
        expect(not self.adapt_noise or self.selection == "validation", "adapt_noise",
               "False with the selection 'published_test', which holds out no normal images", True)
        expect(self.weight_barrier >= 0, "weight_barrier", "at least 0", self.weight_barrier)
        self.spec()
        # The bottleneck makes one pixel of 32: its BatchNorms would see a single value.
        expect(self.batch_size > 1 or self.input_size > 32, "batch_size",
               "at least 2 at an input_size of 32, or a larger input_size", self.batch_size)

    def spec(self) -> ScoringSpec:
        """From pixels to score, as the trained model will do it."""
        return ScoringSpec(input_size=self.input_size, weighting=self.weighting,
                           blur_sigma=self.blur_sigma, reduction=self.reduction,
                           decoding=self.decoding)


@dataclass(frozen=True)
class PretrainConfig:
    """How a teacher is made from normal images, by AdamW with a short warm-up and a cosine decay.

    Each field's "help" says what it is. In coarse steps the noise's law is halved with the pixels.
    """

    backbone: str = field(default="resnet18", metadata=_BACKBONE)
    input_size: int = field(default=ScoringSpec.input_size, metadata=_INPUT_SIZE)
    decoding: DecodingRule = field(default_factory=DecodingRule, metadata=_DECODING)
    steps: int = field(default=2000, metadata=_STEPS)
    coarse_steps: int = field(default=0, metadata={
        "help": "How many of the steps, from the first on, at half the input size, for a quarter of"
                " the time."})
    batch_size: int = field(default=16, metadata={"help": "Images per step."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Of AdamW, at its highest."})
    threshold: float = field(default=0.05, metadata={
        "help": "The teacher learns to see pixels that the noise moves by more, in units of the"
                " [0, 1] pixel range."})
    seed: int = field(default=111, metadata=_SEED)
    precision: str = field(default="fp32", metadata=_PRECISION)
    noise: NoiseConfig = field(metadata=_NOISE, default_factory=lambda: NoiseConfig(
        strength=0.4, min_side=6, max_share=0.5, octaves=3, channels="shared", weakest=0.25))

    def __post_init__(self) -> None:
        backbone_of(self.backbone)  # raises where there is none
        _check_whole(self, "steps", "batch_size")
        _check_common(self)
        expect(0 <= self.threshold < math.inf, "threshold", "a finite number from 0",
               self.threshold)
        expect(is_whole(self.coarse_steps, 0) and self.coarse_steps <= self.steps, "coarse_steps",
               f"from 0 to steps, {self.steps}", self.coarse_steps)
        expect(self.coarse_steps == 0 or self.input_size % 64 == 0, "input_size",
               "a multiple of 64 with coarse_steps", self.input_size)


def check_autocast(precision: str) -> None:
    """Raise InputError unless training knows this precision."""
    expect(precision in AUTOCAST, "precision", f"one of {sorted(AUTOCAST)}", repr(precision))


def _check_whole(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        expect(is_whole(value, 1), name, "a positive integer", repr(value))


def _check_common(config: TrainConfig | PretrainConfig) -> None:
    """Raise InputError unless what both configurations have is as it must be."""
    expect(is_whole(config.seed, 0), "seed", "an integer from 0 to 2**63 - 1", repr(config.seed))
    check_autocast(config.precision)
    expect(0 <= config.learning_rate < math.inf, "learning_rate", "a finite number from 0",
           config.learning_rate)
    expect(isinstance(config.noise, NoiseConfig), "noise", "a NoiseConfig", config.noise)
