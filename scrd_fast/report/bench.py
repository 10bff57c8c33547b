"""What `scrd-fast bench` prints."""

from collections.abc import Iterator

from scrd_fast.model.backbones import describe_network
from scrd_fast.timing.bench import Bench

_UNITS = {"fp32": "GFLOP/s in fp32", "bf16": "GFLOP/s in bf16", "int8": "GOP/s in int8",
          "copy": "GB/s copied"}


def lines(found: Bench) -> Iterator[str]:
    """The figures as text, a line at a time."""
    engine, here, start = found.engine, found.environment, found.start
    network = describe_network(engine["backbone"], engine["student"])
    yield (f"{engine['path']}: {network} at {engine['input_size']} px,"
           f" {engine['backend']} {engine['precision']}")
    yield (f"{here.get('gpu') or here['cpu']}, {here['cores']} cores, {here['threads']} threads,"
           f" load average {here['load_average']:.1f}"
           + (": BUSY, the figures say less" if here["busy"] else ""))
    yield (f"loaded after {start['load_s']:.1f} s, first score after {start['first_score_s']:.1f} s"
           f" (imports included), {start['peak_memory_mib']:.0f} MiB at most")
    yield f"{'batch':>6} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'images/s':>9} {'of limit':>9}"
    for row in found.batches:
        share = row["share_of_limit"]
        yield (f"{row['batch']:>6} {row['p50_ms']:>9.2f} {row['p90_ms']:>9.2f}"
               f" {row['p99_ms']:>9.2f} {row['images_per_s']:>9.1f}"
               f" {'-' if share is None else format(share, '.0%'):>9}")
    yield "single images that arrive at random, from arrival to score:"
    yield f"{'load':>6} {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'images/s':>9}"
    for row in found.loads:
        yield (f"{row['load']:>6.0%} {row['p50_ms']:>9.2f} {row['p90_ms']:>9.2f}"
               f" {row['p99_ms']:>9.2f} {row['images_per_s']:>9.1f}")
    known = [f"{rate / 1e9:.0f} {_UNITS[name]}" for name, rate in found.rates.items() if rate]
    if found.limit is not None:
        yield (f"limit: {found.limit.ms():.2f} ms an image, by {found.limit.bound}, at the"
               f" {', '.join(known)} measured here")
