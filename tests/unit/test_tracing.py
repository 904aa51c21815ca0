"""Spans of a request and its stages, through the SDK's own exporter to memory."""

import asyncio
import builtins
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ray_recsys.errors import InputError
from ray_recsys.serving import tracing
from ray_recsys.serving.schemas import RecommendRequest
from tests.app_client import local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set


def test_a_request_is_a_span_with_one_of_each_stage(tmp_path: Path) -> None:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    api, exporter, provider = local_api(tmp_path / "registry"), InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert api.record is None  # nothing is configured
    api.record = tracing.recorder(provider)
    asyncio.run(api.recommend(RecommendRequest(user_id="user-00001")))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"recommend", "recall", "rerank"}
    request = spans["recommend"]
    assert dict(request.attributes or {}) == {
        "bundle": api.live.bundle.version, "arm": "A", "source": "two-stage", "request_id": ""
    }  # fmt: skip
    for name in ("recall", "rerank"):
        parent, own = spans[name].parent, request.context
        assert parent is not None
        assert own is not None
        assert parent.span_id == own.span_id
        times = [request.start_time, spans[name].start_time, spans[name].end_time, request.end_time]
        assert times == sorted(time or 0 for time in times)
    assert spans["recall"].end_time == spans["rerank"].start_time


def test_a_configured_endpoint_without_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def lacking(name: str, *arguments: Any, **options: Any) -> Any:
        if name.startswith("opentelemetry.exporter.otlp"):
            raise ImportError("no module")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    assert tracing.recorder() is None
    monkeypatch.setenv(tracing.ENDPOINT, "http://127.0.0.1:4318")
    with pytest.raises(InputError, match="OTEL_EXPORTER_OTLP_ENDPOINT"):
        tracing.recorder()
