"""Brain Tumor MRI Dataset (Kaggle, masoudnickparvar): slices as JPEG, by class in folders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from scrd_fast.data.prepare.download import (
    Download,
    Entry,
    Sizes,
    find,
    find_version,
    is_picture,
    list_files,
)

_CLASSES = {"notumor": 0, "glioma": 1, "meningioma": 1, "pituitary": None}
_PARTS = ("Training", "Testing")


def _by_folder(training: tuple[int, ...], testing: tuple[int, ...]) -> dict[str, int]:
    return {f"{part}/{name}": count
            for part, counts in zip(_PARTS, (training, testing), strict=True)
            for name, count in zip(_CLASSES, counts, strict=True)}


@dataclass(frozen=True)
class BrainTumor:
    """versions: images per folder of the two that Kaggle has had. sizes: those of Cai et al., DDAD
    (2022), which MedIAnomaly and SCRD4AD (2025) use."""

    title: ClassVar[str] = "Brain Tumor MRI Dataset (Kaggle, masoudnickparvar)"
    kind: ClassVar[str] = "picture"
    official_split: ClassVar[str] = ""
    versions: Mapping[str, Mapping[str, int]] = field(default_factory=lambda: {
        "version 1 (7023 images)": _by_folder((1595, 1321, 1339, 1457), (405, 300, 306, 300)),
        "version 2 (7200 images, named otherwise than in version 1)":
            _by_folder((1400,) * 4, (400,) * 4)})
    sizes: Sizes = field(default_factory=lambda: Sizes(1000, 600, 600))

    recognises = staticmethod(is_picture)

    def read(self, source: Path, partial: bool) -> Download:
        """Read both official parts as one; anomalous are glioma and meningioma, as published, and
        pituitary tumours are left out."""
        files = {f"{part}/{name}": list_files(find(source, f"{part}/{name}"), ".jpg")
                 for part in _PARTS for name in _CLASSES}
        found = {folder: len(each) for folder, each in files.items()}
        version = find_version(source, self.versions, found, partial)
        entries, whole = list[Entry](), {0: 0, 1: 0}
        for folder, each in files.items():
            name = folder.partition("/")[2]
            label = _CLASSES[name]
            if label is not None:
                whole[label] += self.versions[version][folder]
                entries += [Entry(path.relative_to(source), label, name)
                            for path in each.values()]
        remark = "the download tells no patients: slices of one may be in both train and test"
        return Download(version, found, self.versions[version], whole, (), tuple(entries),
                        (remark,))
