"""A real OTLP receiver over HTTP: keeps the spans that exporters post, protobuf (the SDK) or JSON (Triton)."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.json_format import Parse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """One span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    facts: dict[str, object]


class Receiver:
    """Listens on a free loopback port until it is closed."""

    def __init__(self) -> None:
        self.spans: list[Received] = []
        self.bodies: list[bytes] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                receiver.take(body, "json" in self.headers["Content-Type"])
                self.send_response(200 if self.path == "/v1/traces" else 404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def take(self, body: bytes, is_json: bool) -> None:
        self.bodies.append(body)
        message = ExportTraceServiceRequest()
        if is_json:
            # OTLP's JSON has ids in hex where protobuf's own has bytes in base64.
            Parse(body, message, ignore_unknown_fields=True)
        else:
            message.ParseFromString(body)
        for resource in message.resource_spans:
            names = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    ids = (span.trace_id, span.span_id, span.parent_span_id)
                    self.spans.append(
                        Received(
                            names["service.name"],
                            span.name,
                            *(_hex_of_base64(item) if is_json else item.hex() for item in ids),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            {
                                item.key: getattr(item.value, str(item.value.WhichOneof("value")))
                                for item in span.attributes
                            },
                        )
                    )

    def of(self, trace_id: str) -> list[Received]:
        """The spans of a trace so far."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _hex_of_base64(read: bytes) -> str:
    """Undoes the reading of a hex id as base64."""
    import base64

    return base64.b64encode(read).decode()
