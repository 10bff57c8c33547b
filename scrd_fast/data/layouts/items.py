"""What reading a data set gives: its images with all that the layout tells of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scrd_fast.errors import expect

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Item:
    """One file that holds an image or, DICOM and NIfTI, several.

    label: 0 normal, 1 anomalous, None where the data set does not tell.
    mask: a file of the same size in which the anomalous pixels are not 0, or None.
    patient: what images of one patient share: an ID or, where only DICOM tells and names none, the
        identifier of the study, else of the series; None where nothing tells.
    split: one of SPLITS.
    group: the kind of an anomaly, or what the data set groups its images by; None without such.
    """

    path: Path
    label: int | None = None
    mask: Path | None = None
    patient: str | None = field(default=None, repr=False)  # not for logs
    split: str = "train"
    group: str | None = None


@dataclass(frozen=True)
class DataSet:
    """layout: how the data set was recognised. remarks: what a user should know, a line each."""

    layout: str
    items: tuple[Item, ...]
    remarks: tuple[str, ...] = ()

    def part(self, split: str) -> tuple[Item, ...]:
        """The items of one of SPLITS, which may be none; InputError for another name."""
        expect(split in SPLITS, "split", f"one of {SPLITS}", repr(split))
        return tuple(item for item in self.items if item.split == split)

    def normals(self, split: str) -> tuple[Item, ...]:
        """The normal items of one of SPLITS: those labelled so or, where no item of the whole data
        set has a label, all."""
        wanted = 0 if any(item.label is not None for item in self.items) else None
        return tuple(item for item in self.part(split) if item.label == wanted)


@dataclass(frozen=True)
class Found:
    """What the reader of one layout gives."""

    items: list[Item]
    remarks: list[str]


def choose_split(labels: Iterable[int | None]) -> str:
    """The split of all images of a data set that tells none: there is nothing to train on where
    some are anomalous, and what was measured on normal images that were trained on means nothing.
    """
    return "test" if 1 in set(labels) else "train"
