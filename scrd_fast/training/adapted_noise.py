"""The law of the synthetic anomalies, moved after each validation so that what is synthesised
stays just detectable.

Per kind of the mixture, the AUROC of held-out normals against the same with that kind is held to a
target: above it the kind's strength is lowered, below it raised, and the harder a kind is, the more
often it is drawn. Every move is bounded, and so is where it can lead.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from scrd_fast.data.noise_config import NoiseConfig
from scrd_fast.errors import ScrdError
from scrd_fast.records import read_record

TARGET = 0.9  # AUROC
MOST = 4.0  # strengths stay within 1 / MOST and MOST of those that are configured; hardness, too
STEP = 1.25  # the largest factor of one move
REACH = 0.1  # as far from the target as this, a strength takes the whole step
LOST, PATIENCE = 0.55, 3  # at the upper bound with less than LOST this often: training stops


@dataclass(frozen=True)
class KindLaw:
    """What is known of one kind.

    auroc: as it was last measured, None before that. factor: of the configured strength. hardness:
    how often it is drawn, in units of its configured weight, before all weights are made to sum to
    1. lost: validations in a row in which it was not seen at the upper bound of its strength.
    """

    auroc: float | None = None
    factor: float = 1.0
    hardness: float = 1.0
    lost: int = 0

    def moved(self, auroc: float) -> "KindLaw":
        """After a validation that gave this AUROC with `factor`."""
        wanted = _bounded((1 - auroc) / (1 - TARGET), 1 / MOST, MOST)
        return KindLaw(
            auroc,
            _bounded(self.factor * STEP ** _bounded((TARGET - auroc) / REACH, -1, 1),
                     1 / MOST, MOST),
            self.hardness * _bounded(wanted / self.hardness, 1 / STEP, STEP),
            self.lost + 1 if self.factor == MOST and auroc < LOST else 0)


def _bounded(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


@dataclass(frozen=True)
class AdaptedNoise:
    """The law as it is configured, and what has become of each kind that is drawn at all."""

    configured: NoiseConfig
    kinds: Mapping[str, KindLaw]

    @classmethod
    def begin(cls, noise: NoiseConfig, entry: Mapping[str, Any] | None = None) -> "AdaptedNoise":
        """The law of a new run, or the one that `entry` has kept. Raises InputError."""
        if entry is not None:
            return cls(noise, {kind: read_record(KindLaw, each, f"history.noise.{kind}")
                               for kind, each in entry.items()})
        return cls(noise, {kind: KindLaw() for kind, weight in noise.mixture if weight > 0})

    def entry(self) -> dict[str, Any]:
        """What is kept of it, as JSON has it: numbers come back as they were."""
        return {kind: asdict(law) for kind, law in self.kinds.items()}

    @property
    def weights(self) -> dict[str, float]:
        """How often each kind is drawn; they sum to 1. None falls below 1 / MOST^2 of the share
        that is configured."""
        configured = dict(self.configured.mixture)
        weights = {kind: configured[kind] * law.hardness for kind, law in self.kinds.items()}
        total = sum(weights.values())
        return {kind: weight / total for kind, weight in weights.items()}

    @property
    def factors(self) -> dict[str, float]:
        """Of the strength, by kind."""
        return {kind: law.factor for kind, law in self.kinds.items()}

    @property
    def noise(self) -> NoiseConfig:
        """The configured law with the weights of now; the strengths are `factors` of its own."""
        return replace(self.configured, mixture=tuple(self.weights.items()))

    def moved(self, aurocs: Mapping[str, float], step: int) -> "AdaptedNoise":
        """After a validation, that of so many steps. Raises ScrdError where it runs away."""
        strength = self.configured.strength
        for kind, auroc in aurocs.items():
            if not math.isfinite(auroc):
                raise ScrdError(
                    f"train: the AUROC of the noise's kind {kind!r} is {auroc} after step {step},"
                    f" at the strength {strength * self.factors[kind]:g} of at most"
                    f" {strength * MOST:g}; lower learning_rate, or use precision='fp32'")
        moved = replace(self, kinds={kind: law.moved(aurocs[kind])
                                     for kind, law in self.kinds.items()})
        for kind, law in moved.kinds.items():
            if law.lost >= PATIENCE:
                raise ScrdError(
                    f"train: the noise's kind {kind!r} is not seen: after step {step} its strength"
                    f" has been at its upper bound, {MOST * strength:g} ({MOST:g}"
                    f" times noise.strength), for {PATIENCE} validations with an AUROC below"
                    f" {LOST}, now {law.auroc:.3f}; leave the kind out of noise.mixture,"
                    " raise noise.strength or noise.max_share, or train without adapt_noise")
        return moved

    def scalars(self) -> dict[str, float]:
        """Strength, weight and AUROC of each kind, by the names that TensorBoard shows."""
        found = {}
        for kind, law in self.kinds.items():
            found[f"strength/{kind}"] = self.configured.strength * law.factor
            found[f"weight/{kind}"] = self.weights[kind]
            if law.auroc is not None:
                found[f"auroc/{kind}"] = law.auroc
        return found
