"""Traces of requests, as OpenTelemetry sends them; nothing where they were not asked for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from scrd_fast import __version__


class Trace(Protocol):
    """What makes a span of what happens in a block."""

    def span(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any],
             ) -> Any:
        """A context manager; the span belongs to the trace that the headers name, if any."""

    def close(self) -> None:
        """Send what was not sent yet."""


class NoTrace:
    """Traces nothing."""

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any],
             ) -> Iterator[None]:
        yield

    def close(self) -> None:
        """Nothing was kept."""


class OpenTelemetry:
    """Spans that go where OpenTelemetry's own variables say, OTEL_EXPORTER_OTLP_ENDPOINT first.

    They hold the model, how many images there were and how it ended, and nothing of the images.
    """

    def __init__(self) -> None:
        """Raises ModuleNotFoundError without the extra "tracing"."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME is stronger than what is given here.
        self._provider = TracerProvider(resource=Resource.create({"service.name": "scrd_fast"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("scrd_fast", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any],
             ) -> Iterator[None]:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        from scrd_fast.serving.status import status_of

        context = self._propagator.extract(headers)
        with self._tracer.start_as_current_span(
                name, context, SpanKind.SERVER, attributes, record_exception=False,
                set_status_on_exception=False) as span:
            try:
                yield
            except BaseException as error:
                # Not what the error says, which may be of a file.
                span.set_status(Status(StatusCode.ERROR, status_of(error).grpc))
                raise

    def close(self) -> None:
        self._provider.shutdown()
