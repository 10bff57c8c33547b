"""Traces as a collector receives them."""

import gzip
import http.server
import threading

import pytest

from tests.serving.conftest import run_service, tensor_of
from tests.support.models import pictures

pytest.importorskip("opentelemetry.sdk", reason="needs the tracing extra")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch):
    """What came to an OTLP endpoint."""
    bodies = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            is_packed = self.headers.get("Content-Encoding") == "gzip"
            bodies.append(gzip.decompress(body) if is_packed else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield bodies
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_a_request_is_a_span_of_the_callers_trace(served_file, tmp_path, collector):
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
    )

    with run_service(tmp_path / "log", f"m={served_file}", "--trace") as running:
        running.headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        assert running.infer(tensor_of(pictures(2, 64))).status == 200
        assert running.infer({**tensor_of(pictures(1, 64)), "name": "x"}).status == 400
    spans = [span for body in collector
             for resource in ExportTraceServiceRequest.FromString(body).resource_spans
             for scope in resource.scope_spans for span in scope.spans]
    assert [span.name for span in spans] == ["infer", "infer"]
    for span, images in zip(spans, (2, 1), strict=True):
        assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
        found = {each.key: each.value for each in span.attributes}
        assert found["scrd.model"].string_value == "m"
        assert found["scrd.images"].int_value == images
    assert not spans[0].status.code
    assert (spans[1].status.code, spans[1].status.message) == (2, "INVALID_ARGUMENT")
