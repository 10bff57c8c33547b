"""Experiments of gpu_lab.py on the whole path; see gpu_networks.py."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_networks import (
    SIDE,
    Found,
    built_engine,
    captured_engine,
    device,
    experiment,
    host_ms,
    images_on_gpu,
    time_replays,
)


@experiment("baseline", 150)
def baseline() -> Found:
    """One image and batches of 64: the whole path, the GPU's share of it, and the host's."""
    import torch

    from benchmarks.cuda_timing import copy_rate

    with built_engine((1, 64)) as engine:
        one, many = images_on_gpu(1), images_on_gpu(64)
        found: Found = {"one_image_ms": host_ms(lambda: engine.score(one))}
        found["submit_ms"] = host_ms(lambda: engine.submit(one).done())
        torch.cuda.synchronize()
        ahead = host_ms(lambda: [p.result() for p in [engine.submit(many) for _ in range(8)]], 8)
        found["images_per_s"] = 8 * 64 / ahead * 1e3
    network = {"graph": captured_engine((1, 64))}
    for n in (1, 64):
        found[f"graph_ms_{n}"] = time_replays(network, n)["graph"]
    return found | {"copy_gb_per_s": copy_rate()}


@experiment("nan", 120)
def nan() -> Found:
    """Whether values that are not finite in one batch reach a later one of the same bucket."""
    from scrd_fast.errors import NotFiniteError

    with built_engine((1, 8)) as engine:
        images = images_on_gpu(8).float() / 255
        bad = images * float("nan")
        expected, poisoned, raised = engine.score(images), 0, 0
        for _ in range(5):
            try:
                engine.score(bad)
            except NotFiniteError:
                raised += 1
            try:
                poisoned += not np.array_equal(engine.score(images).maps, expected.maps)
            except NotFiniteError:
                poisoned += 1
    return {"raised of 5": raised, "poisoned of 5": poisoned}


@experiment("repeat", 120)
def repeat() -> Found:
    """200 replays of one batch of 8, bit for bit."""
    with built_engine((1, 8)) as engine:
        images = images_on_gpu(8)
        first = engine.score(images)
        others = sum(not (np.array_equal(again.scores, first.scores)
                          and np.array_equal(again.maps, first.maps))
                     for again in (engine.score(images) for _ in range(200)))
    return {"other results of 200": others}


@experiment("rewrites", 180)
def rewrites() -> Found:
    """The graph without and with each exact rewrite of the network, and all of them."""
    from scrd_fast.backends.fusion import REWRITES

    chosen: dict[str, tuple[str, ...]] = {"none": ()} | {each: (each,) for each in REWRITES} | {
        "all": REWRITES}
    found: Found = {}
    for n in (1, 64):
        networks = {name: captured_engine((n,) if n == 1 else (1, n), rewrites=each)
                    for name, each in chosen.items()}
        found[f"ms_{n}"] = time_replays(networks, n)
    return found


@experiment("profile", 120)
def profile() -> Found:
    """Microseconds by kernel of one replay, of one image and of 64."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    found: Found = {}
    network = captured_engine((1, 64))
    for n in (1, 64):
        replay = network.buckets[n].graph.replay
        replay()
        torch.cuda.synchronize()
        with profiled(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(10):
                replay()
            torch.cuda.synchronize()
        rows = sorted(seen.key_averages(), key=lambda row: -row.device_time_total)[:25]
        found[f"us_{n}"] = {row.key[:90]: [row.device_time_total / 10, row.count / 10]
                            for row in rows}
    return found


@experiment("host", 120)
def host() -> Found:
    """Where Python's time goes between images on the GPU and an enqueued batch of one."""
    import cProfile
    import pstats

    with built_engine((1,)) as engine:
        image = images_on_gpu(1)
        for _ in range(50):
            engine.score(image)
        profiler = cProfile.Profile()
        profiler.enable()
        for _ in range(500):
            engine.submit(image).result()
        profiler.disable()
    stats = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    rows = sorted(stats.items(), key=lambda item: -item[1][2])[:25]
    return {f"{Path(where[0]).name}:{where[1]} {where[2]}": round(1e6 * row[2] / 500, 2)
            for where, row in rows}


@experiment("buckets", 240)
def buckets() -> Found:
    """Images per second of the graph alone, by the size of the batch."""
    found: Found = {}
    for n in (1, 2, 4, 8, 16, 32, 64, 128):
        network = {"": captured_engine((1, n) if n > 1 else (1,))}
        found[str(n)] = n / time_replays(network, n)[""] * 1e3
    return found


@experiment("chunks", 180)
def chunks() -> Found:
    """A batch of 64 through the network in parts whose activations fit into the L2 cache."""
    networks = {str(chunk): captured_engine((1, 64), chunk=chunk) for chunk in (4, 8, 16, 32)}
    return {"ms_64": time_replays(networks | {"whole": captured_engine((1, 64))}, 64)}


@experiment("pinned", 60)
def pinned() -> Found:
    """Microseconds of a copy into new page-locked memory, and into some that is there: a ring's."""
    import torch

    found: Found = {}
    for n in (1, 64):
        fresh = partial(torch.empty, (n, SIDE, SIDE), pin_memory=True)
        kept, maps = fresh(), torch.zeros((n, SIDE, SIDE), device=device())

        def allocate(fresh: Any = fresh, maps: Any = maps) -> None:
            fresh().copy_(maps, non_blocking=True)

        found[f"us_{n}"] = {
            "allocated": 1e3 * host_ms(allocate),
            "there": 1e3 * host_ms(partial(kept.copy_, maps, non_blocking=True))}
    return found


@experiment("map_halves", 120)
def map_halves() -> Found:
    """Copies of maps to the host beside the next batch, on a stream of their own."""
    import torch

    network = captured_engine((1, 64))
    bucket, stream = network.buckets[64], network.stream
    other = torch.cuda.Stream()
    hosts = [torch.empty(bucket.maps.shape, pin_memory=True) for _ in range(2)]
    second = torch.empty_like(bucket.maps)

    def in_order() -> None:
        with torch.cuda.stream(stream):
            for host_maps in hosts:
                bucket.graph.replay()
                host_maps.copy_(bucket.maps, non_blocking=True)
        stream.synchronize()

    def beside() -> None:
        with torch.cuda.stream(stream):
            for host_maps in hosts:
                bucket.graph.replay()
                stream.wait_stream(other)  # the buffer is free again
                second.copy_(bucket.maps)
                other.wait_stream(stream)
                with torch.cuda.stream(other):
                    host_maps.copy_(second, non_blocking=True)
        other.synchronize()

    return {"in_order_ms": host_ms(in_order, 40) / 2, "beside_ms": host_ms(beside, 40) / 2}


@experiment("training", 240)
def training() -> Found:
    """Milliseconds of a step of 16 images in bf16, with the noise on the GPU and without any."""
    import torch

    from benchmarks.test_bench_training_cuda import BATCH, OurStep, milliseconds
    from scrd_fast.training.loop import using_device

    pixels = torch.rand(BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    step, noisy = OurStep(pixels, "bf16", device()), pixels.cuda()
    with using_device(device()):
        for call in (step, lambda i: step(i, noisy)):
            milliseconds(call, 0)
        rounds = [(milliseconds(step, 5 * i), milliseconds(lambda k: step(k, noisy), 5 * i))
                  for i in range(1, 8)]
    with_noise, without = np.median(np.array(rounds), axis=0)
    return {"with_noise_ms": float(with_noise), "without_ms": float(without)}
