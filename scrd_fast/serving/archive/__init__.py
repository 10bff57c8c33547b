"""Scoring archives: the images of a manifest, here or on Ray, into Parquet shards; resumable."""

from scrd_fast.serving.archive.job import Summary, score_archive
from scrd_fast.serving.archive.ray_runner import score_dataset

__all__ = ["Summary", "score_archive", "score_dataset"]
