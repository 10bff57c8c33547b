"""The data sets as data: what is normal in each, and what is tested."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.detection import textures
from scrd_fast import demo
from scrd_fast.data import demo_lesions
from scrd_fast.data.demo_brain import SIZE, make_images
from scrd_fast.spec import FEWEST_PEOPLE

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Normals:
    """Normal images (N, S, S) to train on, and of other subjects to choose on; whom each is of."""

    train: Images
    validation: Images
    train_subjects: Sequence[str]
    validation_subjects: Sequence[str]


@dataclass(frozen=True)
class Tested:
    """Images (N, S, S) and masks (N, S, S) of a test set, subjects (N,), and the kind of each (N,),
    an index into the data set's kinds, -1 of normal ones."""

    images: Images
    masks: NDArray[np.bool_]
    subjects: NDArray[np.int64]
    kinds: NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """Where normal images come from. side: of the network input in px; normals: of a seed, few
    with `quick`; missing: why it is not to be had here, if so."""

    side: int
    normals: Callable[[int, bool], Normals]
    missing: Callable[[], str | None]


@dataclass(frozen=True)
class DataSet:
    """A test set. source: a name among SOURCES; what it is, in a sentence of the page; images: of a
    seed, few with `quick`."""

    source: str
    what: str
    kinds: tuple[str, ...]
    images: Callable[[int, bool], Tested]


QUICK_SHRINK = {"brain": 4, "textures": 2}  # to 32 px


def quick_side(source: str) -> int:
    return SOURCES[source].side // QUICK_SHRINK[source]


def shrink(images: NDArray[Any], factor: int) -> NDArray[Any]:
    """Every `factor`-th pixel of (N, S, S); of masks what has a pixel of the mask in it."""
    if images.dtype != bool:
        return np.ascontiguousarray(images[:, ::factor, ::factor])
    n, side, _ = images.shape
    blocks = images.reshape(n, side // factor, factor, side // factor, factor)
    return np.asarray(blocks.any(axis=(2, 4)))


def _quickly(tested: Tested, factor: int) -> Tested:
    return Tested(shrink(tested.images, factor), shrink(tested.masks, factor), tested.subjects,
                  tested.kinds)


def _no_nilearn() -> str | None:
    from importlib.util import find_spec

    return None if find_spec("nilearn") else "needs nilearn; pip install 'scrd-fast[demo]'"


def _brain_normals(seed: int, quick: bool) -> Normals:
    """Those of the demo, whose test set has the same source."""
    few, slices = (FEWEST_PEOPLE, 1) if quick else (None, demo.SLICES)
    factor = QUICK_SHRINK["brain"] if quick else 1
    train, held = (make_images(demo.subjects(part, seed)[:few], slices)
                   for part in ("train", "validation"))
    return Normals(shrink(train.images, factor), shrink(held.images, factor),
                   list(map(str, train.subjects)), list(map(str, held.subjects)))


def _demo_images(seed: int, quick: bool) -> Tested:
    few, slices = (3, 4) if quick else (None, demo.SLICES)
    found = make_images(demo.subjects("test", seed)[:few], slices, anomalous_share=0.5)
    tested = Tested(found.images, found.lesions, found.subjects, found.labels - 1)
    return _quickly(tested, QUICK_SHRINK["brain"]) if quick else tested


LESION_SUBJECTS = 60


def _lesion_images(seed: int, quick: bool) -> Tested:
    found = demo_lesions.make_lesions(demo_lesions.subjects(3 if quick else LESION_SUBJECTS, seed))
    tested = Tested(found.images, found.masks, found.subjects, found.groups)
    return _quickly(tested, QUICK_SHRINK["brain"]) if quick else tested


TEXTURE_TILES = (1000, 150)  # to train on, to validate on


def _texture_normals(seed: int, quick: bool) -> Normals:
    """A tile is a subject of its own, as in the test set."""
    train, held = textures.normal_tiles(
        *((FEWEST_PEOPLE, 6) if quick else TEXTURE_TILES), seed)
    factor = QUICK_SHRINK["textures"] if quick else 1
    return Normals(shrink(train, factor), shrink(held, factor), list(map(str, range(len(train)))),
                   [f"held {i}" for i in range(len(held))])


def _texture_images(seed: int, quick: bool) -> Tested:
    tested = Tested(*textures.tested_tiles(seed, 1 if quick else 24))
    return _quickly(tested, QUICK_SHRINK["textures"]) if quick else tested


SOURCES: Mapping[str, Source] = {
    "brain": Source(SIZE, _brain_normals, _no_nilearn),
    "textures": Source(textures.SIDE, _texture_normals, textures.missing),
}

DATA_SETS: Mapping[str, DataSet] = {
    "demo": DataSet(
        "brain", "The demo's test subjects: synthetic warps of one real brain, half of the slices"
        " with one smooth round lesion (`scrd_fast/data/demo_brain.py`)", ("lesion",),
        _demo_images),
    "lesions": DataSet(
        "brain", "Other subjects of the same kind, with anomalies of four groups by another law"
        " (`scrd_fast/data/demo_lesions.py`); the models are those of the demo's set",
        demo_lesions.GROUPS, _lesion_images),
    "textures": DataSet(
        "textures", "Tiles of three real pictures, disjoint from those trained on, with pieces of"
        " other real pictures, worn spots and scratches (`benchmarks/detection/textures.py`)",
        textures.KINDS, _texture_images),
}


def of_source(source: str) -> Iterable[str]:
    """Names of the data sets that are tested with the models of a source."""
    return [name for name, each in DATA_SETS.items() if each.source == source]
