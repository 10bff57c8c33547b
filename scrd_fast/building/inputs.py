"""What an engine is built from, read and checked before the work begins."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scrd_fast.backends.source import Source
from scrd_fast.building.judge import Judge
from scrd_fast.data.decode.find import read_some
from scrd_fast.data.listing import is_paths
from scrd_fast.data.normals import find_normals
from scrd_fast.errors import expect
from scrd_fast.files import as_path, check_writable
from scrd_fast.graph.portable import build_graph
from scrd_fast.model.checkpoint import Checkpoint, load_checkpoint
from scrd_fast.precisions import QUANTISED
from scrd_fast.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """path: of the checkpoint; target: of the engine file; source: the portable graph;
    images: normal ones, decoded, or None; probe: what is judged on, as in
    engine.manifest.Fidelity."""

    path: Path
    target: Path
    checkpoint: Checkpoint
    source: Source
    images: Any
    probe: str
    judge: Judge


def read_inputs(
    checkpoint: str | os.PathLike[str], out: str | os.PathLike[str] | None, images: Any,
    precision: str, progress: Progress,
) -> Inputs:
    """Arguments as of building.build.build_engine; raises CheckpointError, DataError, InputError,
    OutputError."""
    path = as_path(checkpoint, "checkpoint")
    target = path.with_suffix(".scrd") if out is None else as_path(out, "out")
    check_writable(target, "out", inputs=[path])
    loaded = load_checkpoint(path)
    decoded = images
    if is_paths(images):
        files = find_normals(images, trained_on=True, progress=progress, stacklevel=4)
        decoded = read_some(list(files), loaded.spec.decoding)
    source = Source.of(build_graph(loaded.model, loaded.spec))
    expect(decoded is not None or precision not in QUANTISED, "images",
           f"normal images to calibrate {precision} on", "none")
    return Inputs(path, target, loaded, source, decoded, "golden" if images is None else "images",
                  Judge(loaded, decoded, progress))
