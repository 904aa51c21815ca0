"""OpenTelemetry spans of requests and stages; off unless an endpoint is configured, which needs the extra `otel`."""

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ray_recsys.errors import InputError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"

Record = Callable[[float, float, float, dict[str, str]], None]
"""Seconds of the request, milliseconds of recall and of rerank, attributes: records a request that ends now."""


def recorder(provider: "TracerProvider | None" = None) -> Record | None:
    """Returns the recorder of requests as spans; None: nothing is configured.

    Args:
        provider: Receives the spans; None: one that exports to OTEL_EXPORTER_OTLP_ENDPOINT, if that is set.

    Raises:
        InputError: The endpoint is set, and the extra is not installed.
    """
    if provider is None:
        if not os.environ.get(ENDPOINT):
            return None
        provider = _exporting_provider()
    from opentelemetry import trace

    tracer = provider.get_tracer("ray_recsys")

    def record(total_s: float, recall_ms: float, rerank_ms: float, attributes: dict[str, str]) -> None:
        end_ns = time.time_ns()
        request = tracer.start_span("recommend", start_time=end_ns - int(total_s * 1e9), attributes=attributes)
        context = trace.set_span_in_context(request)
        recalled_ns = end_ns - int(rerank_ms * 1e6)  # the stages are the end of a request, but for writing it
        recall = tracer.start_span("recall", context, start_time=recalled_ns - int(recall_ms * 1e6))
        recall.end(recalled_ns)
        tracer.start_span("rerank", context, start_time=recalled_ns).end(end_ns)
        request.end(end_ns)

    return record


def _exporting_provider() -> "TracerProvider":
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        message = f"{ENDPOINT} is set, but OpenTelemetry cannot be imported ({error})"
        raise InputError(message, remedy="pip install 'ray-recsys[otel]', or unset it") from error
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
