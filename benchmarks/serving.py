"""A service under load, beside the Python API: python -m benchmarks.serving

On one machine, the clients' work included: what a request costs beyond the API's time (in turn,
batches of 1, over one connection), how many images four clients get, and two open loops, whose
requests come when they are due, whatever became of those before: at 0.7 times the service's
capacity, and at 1.5 times. A capacity is what eight clients get that each wait for their answer.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

import scrd_fast
from benchmarks.models import engine_file, pictures, untrained
from benchmarks.processes import run_verb
from benchmarks.results import commit
from benchmarks.timing import clock, time_in_turn
from scrd_fast.engine.engine import Engine
from scrd_fast.files import atomic_write
from scrd_fast.serving.grpc_messages import message
from scrd_fast.serving.http import TIMEOUT
from scrd_fast.serving.messages import JSON_LENGTH
from scrd_fast.timing.bench import environment

RESULTS = Path(__file__).parent / "results" / "serving.jsonl"
MODELS = (("resnet18", 128), ("wide_resnet50_2", 256))
PATH = "/v2/models/m/infer"
REFUSED_SECONDS, GROWTH = 0.05, 256e6  # wanted: of a refusal; bytes of the service's memory


@dataclass(frozen=True)
class Serving:
    """A running service."""

    process: "subprocess.Popen[bytes]"
    address: tuple[str, int]
    grpc: str

    def resident(self) -> int:
        """Bytes of memory that it holds."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def run_service(engine: Path, log: Path) -> Iterator[Serving]:
    """scrd-fast serve with all defaults, on free ports."""
    with run_verb(log, r"ready: http://(\S+):(\d+), gRPC (\S+)\n", "serve", f"m={engine}", "--port",
                  "0", "--grpc-port", "0") as (process, found):
        yield Serving(process, (found[1], int(found[2])), found[3])


def binary_request(image: NDArray[np.uint8]) -> tuple[bytes, dict[str, str]]:
    """A request for the score of a batch, its pixels and the score as bytes."""
    text = json.dumps({
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": list(image.shape),
                    "parameters": {"binary_data_size": image.nbytes}}],
        "outputs": [{"name": "score", "parameters": {"binary_data": True}}]}).encode()
    return text + image.tobytes(), {JSON_LENGTH: str(len(text))}


class HttpClient:
    """A connection that stays open. Gives scores."""

    def __init__(self, serving: Serving, image: NDArray[np.uint8]) -> None:
        self._connection = http.client.HTTPConnection(*serving.address, timeout=120)
        self._body, self._headers = binary_request(image)

    def score(self) -> bytes:
        self._connection.request("POST", PATH, self._body, self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body[int(answer.headers[JSON_LENGTH]):]


class GrpcClient:
    """As HttpClient, over gRPC."""

    def __init__(self, serving: Serving, image: NDArray[np.uint8]) -> None:
        self._request = message("ModelInferRequest")(
            model_name="m", raw_input_contents=[image.tobytes()], outputs=[{"name": "score"}],
            inputs=[{"name": "images", "datatype": "UINT8", "shape": image.shape}])
        self._call = grpc.insecure_channel(serving.grpc).unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=message("ModelInferRequest").SerializeToString,
            response_deserializer=message("ModelInferResponse").FromString)

    def score(self) -> bytes:
        return bytes(self._call(self._request, timeout=120).raw_output_contents[0])


def overhead(engine: Engine, serving: Serving, image: NDArray[np.uint8], rounds: int,
             ) -> dict[str, Any]:
    """Milliseconds of a score by the API and by a client, one after the other."""
    clients = HttpClient(serving, image), GrpcClient(serving, image)
    expected = engine.score(image, maps=False).scores.tobytes()
    for client in clients:
        assert client.score() == expected  # bit for bit
    calls = [lambda: engine.score(image, maps=False), *(client.score for client in clients)]
    times = time_in_turn([clock(call) for call in calls], rounds, pause=0.02, warm_up=1)
    api, by_http, by_grpc = np.median(times, axis=0)
    return {"api_ms": api, "http_ms": by_http, "grpc_ms": by_grpc,
            "http_more_ms": float(np.median(times[:, 1] - times[:, 0])),
            "grpc_more_ms": float(np.median(times[:, 2] - times[:, 0])),
            "wanted_more_ms": 2 + 0.05 * api}


def rate_of(calls: list[Callable[[], Any]], seconds: float) -> float:
    """Images per second of threads that each call again and again."""
    end = time.perf_counter() + seconds

    def run(call: Callable[[], Any]) -> int:
        count = 0
        while time.perf_counter() < end:
            call()
            count += 1
        return count

    began = time.perf_counter()
    with ThreadPoolExecutor(len(calls)) as pool:
        count = sum(pool.map(run, calls))
    return count / (time.perf_counter() - began)


def throughput(engine: Engine, serving: Serving, image: NDArray[np.uint8], seconds: float,
               rounds: int) -> dict[str, Any]:
    """Images per second of four threads at the API and of four clients, in turn; and the service's
    capacity."""
    api: list[Callable[[], Any]] = [lambda: engine.score(image, maps=False)] * 4
    clients = [HttpClient(serving, image).score for _ in range(8)]
    rates = np.array([[rate_of(api, seconds), rate_of(clients[:4], seconds),
                       rate_of(clients, seconds)] for _ in range(rounds)])
    ratio = np.median(rates[:, 1] / rates[:, 0])
    of_api, of_clients, capacity = np.median(rates, axis=0)
    return {"api_per_second": of_api, "clients_per_second": of_clients, "ratio": float(ratio),
            "capacity": float(capacity)}


@dataclass
class Outcomes:
    """What became of the requests of an open loop: seconds from when each was due to its answer,
    by the answer's status."""

    seconds: dict[int, list[float]] = field(default_factory=dict)

    def add(self, status: int, seconds: float) -> None:
        self.seconds.setdefault(status, []).append(seconds)

    def quantile(self, status: int, q: float) -> float:
        found = self.seconds.get(status)
        return float(np.quantile(found, q)) if found else float("nan")


class Generator:
    """Sends requests when they are due, each over a connection that is free then, or a new one."""

    def __init__(self, address: tuple[str, int], image: NDArray[np.uint8], deadline: float) -> None:
        body, headers = binary_request(image)
        lines = [f"POST {PATH} HTTP/1.1", f"Host: {address[0]}", f"Content-Length: {len(body)}",
                 f"{TIMEOUT}: {deadline:g}", *(f"{n}: {v}" for n, v in headers.items()), "", ""]
        self._request = "\r\n".join(lines).encode() + body
        self._address, self.outcomes = address, Outcomes()
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def run(self, due: NDArray[np.float64]) -> None:
        """due: seconds from now, rising."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        tasks = set()
        for at in due:
            await asyncio.sleep(max(0, began + at - loop.time()))
            task = asyncio.ensure_future(self._send(began + at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        for _, writer in self._free:
            writer.close()

    async def _send(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = self._free.pop() if self._free else await asyncio.open_connection(
            *self._address)
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None, head
        await reader.readexactly(int(length[1]))
        self.outcomes.add(int(head.split(b" ", 2)[1]), loop.time() - due)
        if b"connection: close" in head:
            writer.close()
        else:
            self._free.append((reader, writer))


def open_loop(serving: Serving, image: NDArray[np.uint8], rate: float, seconds: float,
              deadline: float, *, even: bool) -> tuple[Outcomes, int]:
    """Outcomes, and by how many bytes the service's memory grew at most. even: the requests come
    at equal distances, else as independent clients' do (exponential ones)."""
    count = max(1, round(rate * seconds))
    gaps = np.ones(count) if even else np.random.default_rng(0).exponential(size=count)
    generator = Generator(serving.address, image, deadline)
    before, most = serving.resident(), 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, serving.resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        asyncio.run(generator.run(np.cumsum(gaps) / rate))
    finally:
        done.set()
        watcher.join()
    return generator.outcomes, most


def loads(serving: Serving, image: NDArray[np.uint8], found: dict[str, Any], seconds: float,
          ) -> dict[str, Any]:
    """The open loops at 0.7 and at 1.5 times the capacity."""
    capacity, latency = found["capacity"], found["http_ms"] / 1e3
    deadline = max(1.0, 20 * latency)
    rows: dict[str, Any] = {"deadline_s": deadline}
    for name, even in (("even", True), ("independent", False)):
        outcomes, _ = open_loop(serving, image, 0.7 * capacity, seconds / 4, deadline, even=even)
        rows[f"p99_{name}"] = outcomes.quantile(200, 0.99) / latency
        rows[f"refused_{name}"] = sum(
            len(each) for status, each in outcomes.seconds.items() if status != 200)
    outcomes, growth = open_loop(serving, image, 1.5 * capacity, seconds, deadline, even=False)
    counts = {status: len(each) for status, each in sorted(outcomes.seconds.items())}
    return rows | {
        "statuses": counts, "accepted_per_second": counts.get(200, 0) / seconds,
        "accepted_longest_s": outcomes.quantile(200, 1), "refused_p50_ms":
        1e3 * outcomes.quantile(429, 0.5), "refused_p99_ms": 1e3 * outcomes.quantile(429, 0.99),
        "refused_longest_ms": 1e3 * outcomes.quantile(429, 1), "memory_growth_mb": growth / 1e6}


def measure(backbone: str, side: int, seconds: float, folder: Path) -> dict[str, Any]:
    """All figures of one model."""
    path = engine_file(untrained(backbone, side, folder), "fp32")
    image = pictures(side, 1)
    began = environment()
    with scrd_fast.load_engine(path) as engine, run_service(path, folder / "log") as serving:
        found = overhead(engine, serving, image, rounds=min(40, max(5, round(seconds))))
        found |= throughput(engine, serving, image, max(1.0, seconds / 12), rounds=3)
        found |= loads(serving, image, found, seconds)
    return {"model": f"{backbone}, {side} px, fp32", "seconds": seconds, **found,
            "machine": began, "commit": commit()}


def tell(row: dict[str, Any]) -> str:
    """A row's figures beside what is wanted of them."""
    lines = [
        ("batch of 1, ms: API, HTTP, gRPC",
         f"{row['api_ms']:.2f}, {row['http_ms']:.2f}, {row['grpc_ms']:.2f}", ""),
        ("HTTP's time beyond the API's, ms", f"{row['http_more_ms']:.2f}",
         f"at most {row['wanted_more_ms']:.2f}"),
        ("gRPC's time beyond the API's, ms", f"{row['grpc_more_ms']:.2f}",
         f"at most {row['wanted_more_ms']:.2f}"),
        ("images per second: API by 4 threads, 4 clients, 8 clients",
         f"{row['api_per_second']:.1f}, {row['clients_per_second']:.1f}, {row['capacity']:.1f}",
         ""),
        ("4 clients, times the API's", f"{row['ratio']:.2f}", "at least 0.9"),
        ("at 0.7 times the capacity, requests at equal distances: 99th percentile, times a"
         " request's own", f"{row['p99_even']:.1f}", "at most 3"),
        ("the same, independent requests", f"{row['p99_independent']:.1f}", ""),
        (f"at 1.5 times, {row['seconds']:g} s: answers by status", str(row["statuses"]),
         "200 and 429"),
        ("longest of the accepted, s", f"{row['accepted_longest_s']:.2f}",
         f"at most {row['deadline_s']:.2f}"),
        ("refusals, ms: median, 99th percentile, longest",
         f"{row['refused_p50_ms']:.1f}, {row['refused_p99_ms']:.1f},"
         f" {row['refused_longest_ms']:.1f}", f"at most {1e3 * REFUSED_SECONDS:g}"),
        ("memory grew by, MB", f"{row['memory_growth_mb']:.0f}", f"at most {GROWTH / 1e6:g}")]
    return "\n".join([f"{row['model']}", "| what | measured | wanted |", "| --- | --- | --- |",
                      *(f"| {' | '.join(line)} |" for line in lines), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="of the overload")
    parser.add_argument("--model", choices=[name for name, _ in MODELS], help="of one model alone")
    parser.add_argument("--store", action="store_true", help=f"add the figures to {RESULTS.name}")
    options = parser.parse_args()
    rows = []
    for backbone, side in MODELS:
        if options.model in (None, backbone):
            with tempfile.TemporaryDirectory() as folder:
                rows.append(measure(backbone, side, options.seconds, Path(folder)))
            print(tell(rows[-1]), flush=True)
    if options.store:
        before = RESULTS.read_text() if RESULTS.exists() else ""
        with atomic_write(RESULTS) as temporary:
            temporary.write_text(before + "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
