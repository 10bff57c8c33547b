"""Teachers, each made once: methods that share a teacher's options share the teacher."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.detection.data_sets import Images
from scrd_fast import demo
from scrd_fast.files import atomic_write
from scrd_fast.training.pretrain import pretrain_teacher


@dataclass(frozen=True)
class Teachers:
    """Those of one source and seed, kept in `folder` from run to run under names that begin with
    `name`. normal: images (N, S, S)."""

    folder: Path
    name: str
    normal: Images
    side: int
    seed: int

    def path(self, options: Mapping[str, Any]) -> Path:
        """Where the teacher of these options lies, or would: the name tells what decides it."""
        settings = {"options": options, "images": list(self.normal.shape), "side": self.side,
                    "precision": demo.training_precision(), "backbone": demo.BACKBONE}
        return self.beside("teacher", settings)

    def beside(self, kind: str, settings: Mapping[str, Any]) -> Path:
        """A place for another file that these settings decide, in the same folder."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode())
        return self.folder / (
            f"{self.name}-{self.seed}-{kind}-{digest.hexdigest()[:12]}.safetensors")

    def get(self, options: Mapping[str, Any]) -> tuple[Path, float]:
        """The file of a teacher, and the seconds that it took to make, whenever that was."""
        path = self.path(options)
        note = path.with_suffix(".json")  # written last: where it is the teacher is whole
        if not note.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            began = time.perf_counter()
            pretrain_teacher(self.normal, path, progress=False, backbone=demo.BACKBONE,
                             input_size=self.side, seed=self.seed,
                             precision=demo.training_precision(), **options)
            with atomic_write(note) as temporary:
                temporary.write_text(json.dumps({"seconds": time.perf_counter() - began}) + "\n")
        return path, float(json.loads(note.read_text())["seconds"])
