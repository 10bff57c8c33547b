"""What Prometheus reads of a service, in base units.

A request is what a client sent, an inference an image that was scored, an execution a batch that
went through the network, as Triton Inference Server counts them.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from scrd_fast.serving.repository import Repository

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_MODEL = ("model", "version")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class _Engines(Collector):
    """What the engines know of themselves, asked for when somebody reads."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    def collect(self) -> Iterator[Metric]:
        executions = CounterMetricFamily("scrd_executions", "Batches given to the network.",
                                         labels=_MODEL)
        pending = GaugeMetricFamily("scrd_pending_images", "Images that were taken and are not"
                                    " scored yet.", labels=_MODEL)
        for key, model in self._repository.served.items():
            executions.add_metric(key, model.engine.executions())
            pending.add_metric(key, model.pending)
        yield executions
        yield pending


class Metrics:
    """Counts and times of a service's requests."""

    def __init__(self, repository: Repository) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_Engines(repository))
        self._requests = Counter("scrd_requests", "Requests by how they ended, OK or a name of"
                                 " gRPC's.", (*_MODEL, "status"), registry=self._registry)
        self._inferences = Counter("scrd_inferences", "Images that were scored.", _MODEL,
                                   registry=self._registry)
        self._seconds = Histogram("scrd_request_seconds", "From a request that was read to its"
                                  " answer, those that succeed.", _MODEL, buckets=_SECONDS,
                                  registry=self._registry)

    def count(self, model: str, version: str, status: str, seconds: float, images: int) -> None:
        """Count a request: images that were scored for it, and how it ended."""
        self._requests.labels(model, version, status).inc()
        if status == "OK":
            self._inferences.labels(model, version).inc(images)
            self._seconds.labels(model, version).observe(seconds)

    def text(self) -> bytes:
        """All in Prometheus's text format."""
        return generate_latest(self._registry)
