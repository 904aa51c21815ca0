"""Prometheus metrics of one ingress replica, at /metrics."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.stages import Answer

PREFIX = "ray_recsys"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """What is counted; each has its own registry, so that several applications may live in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Histogram(
            "request_seconds",
            "Time of a request",
            ["route", "status"],
            buckets=_SECONDS,
            namespace=PREFIX,
            registry=own,
        )
        stage = Histogram(
            "stage_seconds",
            "Computation of a stage for one query",
            ["stage"],
            buckets=_SECONDS,
            namespace=PREFIX,
            registry=own,
        )
        self._recall, self._rerank = stage.labels("recall"), stage.labels("rerank")
        self._answers = Counter(
            "answers_total", "Answers by source; popular is the fallback", ["source"], namespace=PREFIX, registry=own
        )
        self._by_source = {name: self._answers.labels(name) for name in ("two-stage", "fold-in", "popular")}
        self._short = Counter("short_answers_total", "Answers with fewer than k items", namespace=PREFIX, registry=own)
        self._batches = Histogram(
            "batch_queries", "Queries in one call of the stages", buckets=_SIZES, namespace=PREFIX, registry=own
        )
        self.refusals = Counter(
            "refusals_total", "Requests refused before they were parsed", ["reason"], namespace=PREFIX, registry=own
        )
        self._waiting = Gauge("waiting_queries", "Queries waiting for the stages", namespace=PREFIX, registry=own)
        self._in_flight = Gauge(
            "requests_in_flight", "Requests admitted and not yet answered", namespace=PREFIX, registry=own
        )
        self._bundle = Gauge(
            "bundle_info", "1 for the version that answers", ["version", "replica"], namespace=PREFIX, registry=own
        )
        self._swaps = Gauge("bundle_swaps", "Swaps to another version since the start", namespace=PREFIX, registry=own)
        self._failures = Gauge(
            "swap_failures", "Failed attempts to swap since the start", namespace=PREFIX, registry=own
        )
        self._failing = Gauge(
            "swap_failing", "1 while the registry's live version is refused", namespace=PREFIX, registry=own
        )

    def answered(self, query: Query, answer: Answer) -> None:
        """Counts an answer of the stages."""
        self._recall.observe(answer.recall_ms / 1e3)
        self._rerank.observe(answer.rerank_ms / 1e3)
        self._by_source[answer.recommendations.source].inc()
        if len(answer.recommendations.item_idx) < query.k:
            self._short.inc()

    def called(self, num_queries: int) -> None:
        """Counts a call of the stages."""
        self._batches.observe(num_queries)

    def write(self, live: LiveBundle, *, num_waiting: int, num_in_flight: int) -> bytes:
        """Returns the text that Prometheus scrapes."""
        self._waiting.set(num_waiting)
        self._in_flight.set(num_in_flight)
        self._bundle.clear()
        self._bundle.labels(live.bundle.version, str(os.getpid())).set(1)
        self._swaps.set(live.num_swaps)
        self._failures.set(live.num_failures)
        self._failing.set(live.failure is not None)
        return generate_latest(self.registry)
