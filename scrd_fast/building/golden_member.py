"""What an engine gives when it is built, next to the reference: the golden member of its file."""

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save as save_tensors

from scrd_fast.backends.runner import Runner
from scrd_fast.data.golden_images import golden_images
from scrd_fast.engine.golden import digest_of, scores_of
from scrd_fast.model.checkpoint import Checkpoint
from scrd_fast.model.reference import score_images
from scrd_fast.progress import Progress

GOLDEN_COUNT = 8


def make_golden(checkpoint: Checkpoint, runner: Runner, probe: Sequence[NDArray[np.uint8]],
                progress: Progress) -> bytes:
    """Make the golden member of an engine file from a runner that was just built (see
    engine.golden). probe: engine.golden.probe_images."""
    spec = checkpoint.spec
    images = golden_images(GOLDEN_COUNT, spec.input_size)
    reference, _ = score_images(checkpoint.model, spec, images)
    assert reference.map is not None
    with closing(runner.scorer()) as scorer:
        def score(batch: Sequence[Any], maps: bool) -> tuple[Any, ...]:
            return scorer.submit(runner.inputs(list(batch), "batch"), maps).get()

        scores, maps, *_ = score(images, True)
        probe_scores = scores_of(probe, lambda batch: score(batch, False)[0], progress)
    tensors: dict[str, NDArray[Any]] = {f"image{i}": image for i, image in enumerate(images)}
    tensors |= {"scores": reference.score(spec).numpy(), "maps": reference.map.numpy(),
                "built_scores": scores, "built_maps": maps,
                "probe_scores": probe_scores, "probe_digest": digest_of(probe)}
    return save_tensors(tensors)
