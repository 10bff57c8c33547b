"""The teacher's clean features: the same bits kept or computed, and no more memory than is free."""

from pathlib import Path

import numpy as np
import pytest
import torch

import scrd_fast
from scrd_fast.model.backbones import BACKBONES
from scrd_fast.model.resnet import fold_batchnorms
from scrd_fast.model.scrd import Teacher
from scrd_fast.training import loop
from scrd_fast.training.batches import autocast
from scrd_fast.training.feature_cache import FeatureCache, free_memory
from tests.training.small import SMALL

CPU = torch.device("cpu")
SIDES = (4, 2, 1)


def maps_of(indices):
    """Features that tell of which image they are, in the layout that convolutions give."""
    return tuple(
        torch.stack([torch.full((3, side, side), float(i)) for i in indices]).contiguous(
            memory_format=torch.channels_last) for side in SIDES)


def unknown():
    raise AssertionError("each image of this batch has been seen")


def test_batches_of_images_that_were_seen_are_not_computed():
    cache = FeatureCache(6, limit=6 * 3 * 21 * 4)
    for indices in ([0, 3], [5, 1]):
        found = cache.features(np.array(indices), lambda of=indices: maps_of(of))
        assert all(torch.equal(a, b) for a, b in zip(found, maps_of(indices), strict=True))
    for indices in ([3, 5], [1, 1], [0, 1, 3, 5]):
        kept = cache.features(np.array(indices), unknown)
        for a, b in zip(kept, maps_of(indices), strict=True):
            assert torch.equal(a, b)
            assert a.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(AssertionError, match="each image"):
        cache.features(np.array([3, 2]), unknown)


def test_nothing_is_kept_that_does_not_fit():
    cache = FeatureCache(6, limit=6 * 3 * 21 * 4 - 1)
    cache.features(np.array([0, 1]), lambda: maps_of([0, 1]))
    with pytest.raises(AssertionError, match="each image"):
        cache.features(np.array([0, 1]), unknown)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("backbone", "size", "batch"), [
    *((backbone, 64, 3) for backbone in BACKBONES), ("resnet18", 32, 1), ("resnet18", 96, 8)])
def test_an_image_has_the_same_bits_at_any_place(backbone, size, batch, precision, threads):
    """Of a batch of one size; what the cache relies on."""
    torch.manual_seed(0)
    teacher = fold_batchnorms(Teacher(backbone).eval().requires_grad_(False))
    if precision == "bf16":
        teacher.to(torch.bfloat16)
    teacher.to(memory_format=torch.channels_last)
    images = torch.randn(2 * batch, 3, size, size)

    def teach(chosen):
        with autocast(CPU, precision):
            return teacher(images[chosen].contiguous(memory_format=torch.channels_last))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = [torch.cat(maps) for maps in zip(
            teach(torch.arange(batch)), teach(torch.arange(batch, 2 * batch)), strict=True)]
        for seed in range(3):
            chosen = torch.randperm(
                2 * batch, generator=torch.Generator().manual_seed(seed))[:batch]
            for maps, whole in zip(teach(chosen), expected, strict=True):
                assert torch.equal(maps, whole[chosen])
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {}, {"weighting": "scale"}, {"published_batchnorm": True}, {"precision": "bf16"}],
    ids=["none", "scale", "published", "bf16"])
def test_a_training_with_and_without_it_is_the_same(images, tmp_path, monkeypatch, options):
    calls = []
    original = Teacher.forward

    def forward(self, x):
        calls.append(len(x))
        return original(self, x)

    monkeypatch.setattr(Teacher, "forward", forward)
    files, passes = {}, {}
    for name, free in (("with", free_memory()), ("without", 0)):
        monkeypatch.setattr(loop, "free_memory", lambda free=free: free)
        calls.clear()
        out = tmp_path / f"{name}.safetensors"
        scrd_fast.train(images[:8], out, validation=images[-2:], steps=6, validate_every=3,
                        **SMALL | options)
        files[name] = out.read_bytes(), out.with_suffix(".state.safetensors").read_bytes()
        passes[name] = len(calls)
    assert files["with"] == files["without"]
    # 8 images in steps of 4: the first two steps see them all.
    assert passes["without"] - passes["with"] == 4


GB = 1 << 30
MEMINFO = "MemTotal: 16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("files", "expected"), [
    ({}, 8 * GB),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
      "sys/fs/cgroup/a/b/memory.stat": "anon 1\n", "sys/fs/cgroup/a/b/memory.current": "9\n",
      "sys/fs/cgroup/a/memory.max": f"{4 * GB}\n", "sys/fs/cgroup/a/memory.current": f"{3 * GB}\n",
      "sys/fs/cgroup/a/memory.stat": f"anon {2 * GB}\ninactive_file {GB}\n"}, 2 * GB),
    ({"proc/self/cgroup": "8:pids:/\n4:memory:/outside\n0::/\n",
      "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{3 * GB}\n",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GB}\n",
      "sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 0\n"}, 2 * GB),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n",
      "sys/fs/cgroup/memory.current": "2000\n", "sys/fs/cgroup/memory.stat": "anon 2000\n"}, 0),
], ids=["no group", "a parent's limit", "a container, version 1", "above its limit"])
def test_free_memory(tmp_path, files, expected):
    write_tree(tmp_path, {"proc/meminfo": MEMINFO} | files)
    assert free_memory(tmp_path) == expected


def test_free_memory_of_this_machine_and_of_one_that_does_not_tell(tmp_path):
    assert free_memory(tmp_path) == 0
    if Path("/proc/meminfo").exists():
        assert free_memory() > 1 << 20
