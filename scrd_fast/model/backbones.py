"""The backbones and students by name, and their shapes. Loads no PyTorch: configurations and help
name them."""

from dataclasses import dataclass
from typing import Literal

from scrd_fast.errors import expect


@dataclass(frozen=True)
class Backbone:
    """Shape of a ResNet: block type, blocks per stage, width factor of the 3x3 convolutions.

    bottleneck_blocks: number of residual blocks in the one-class bottleneck that goes with it.
    """

    block: Literal["basic", "bottleneck"]
    stages: tuple[int, int, int]
    width: int
    bottleneck_blocks: int

    @property
    def expansion(self) -> int:
        return 1 if self.block == "basic" else 4

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three feature maps, finest scale first."""
        return (64 * self.expansion, 128 * self.expansion, 256 * self.expansion)


BACKBONES = {
    "resnet18": Backbone("basic", (2, 2, 2), 1, 2),
    "resnet34": Backbone("basic", (3, 4, 6), 1, 3),
    "resnet50": Backbone("bottleneck", (3, 4, 6), 1, 3),
    "wide_resnet50_2": Backbone("bottleneck", (3, 4, 6), 2, 3),
}


def backbone_of(name: str) -> Backbone:
    """The backbone of that name; raises InputError listing the choices."""
    known = isinstance(name, str) and name in BACKBONES
    expect(known, "backbone", f"one of {sorted(BACKBONES)}", repr(name))
    return BACKBONES[name]


# By what each student divides the channels inside of itself and of the one-class bottleneck.
STUDENTS = {"full": 1, "slim": 2}


def divisor_of(student: str) -> int:
    """What the student of that name divides channels by; raises InputError listing the choices."""
    known = isinstance(student, str) and student in STUDENTS
    expect(known, "student", f"one of {list(STUDENTS)}", repr(student))
    return STUDENTS[student]


def describe_network(backbone: str, student: str) -> str:
    """The network in a few words: the backbone's name, and the student's unless it is "full"."""
    return backbone if student == "full" else f"{backbone} with a {student} student"
