"""Prometheus metrics of the ingress replicas, at /metrics of any of them; each series has its replica as a label.

Requests only increment plain numbers; the exposition is built from them at each scrape.
"""

import os
import socket
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ray_recsys.core.recommending.arms import LIVE
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.impressions import ImpressionSink
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.stages import Answer

PREFIX = "ray_recsys_"
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_PARTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)


class Distribution:
    """Counts by bucket, and the sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = _SECONDS) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[str, float]]:
        """Returns the cumulative counts by upper bound, as Prometheus has them."""
        rows, cumulative = [], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            cumulative += count
            rows.append((bound, float(cumulative)))
        return rows


class Metrics:
    """Counters of one application."""

    def __init__(self) -> None:
        self.requests: defaultdict[tuple[str, int], Distribution] = defaultdict(Distribution)
        """By route and status."""
        self.refusals: defaultdict[str, int] = defaultdict(int)
        """Requests refused by the gateway, by reason."""
        self.recall, self.rerank, self.batches = Distribution(), Distribution(), Distribution(_SIZES)
        self.answers: defaultdict[tuple[str, str], int] = defaultdict(int)
        """By arm and source."""
        for source in ("two-stage", "fold-in", "popular"):
            self.answers[LIVE, source] = 0
        self.arms: defaultdict[str, Distribution] = defaultdict(Distribution)
        """Seconds of `recommend` by arm, shadows included."""
        self.shadows: defaultdict[str, Distribution] = defaultdict(lambda: Distribution(_PARTS))
        """Part of the items shown that a shadow has too, by arm."""
        self.shadow_failures: defaultdict[str, int] = defaultdict(int)
        self.num_shadows_skipped = 0
        self.num_short = 0
        self._gauges: dict[str, tuple[str, float]] = {}
        self._versions: dict[str, str] = {}
        self._impressions: dict[str, int] = {}
        self.replica = f"{socket.gethostname()}-{os.getpid()}"
        """Value of the label `replica`."""

    def answered(self, query: Query, answer: Answer, arm: str) -> None:
        """Counts an answer of the stages."""
        self.recall.add(answer.recall_ms / 1e3)
        self.rerank.add(answer.rerank_ms / 1e3)
        self.answers[arm, answer.recommendations.source] += 1
        self.num_short += len(answer.recommendations.item_idx) < query.k

    def families(
        self, live: LiveBundle, impressions: ImpressionSink | None, *, num_waiting: int, num_in_flight: int
    ) -> list[Metric]:
        """Returns what has been counted; every sample has the label `replica`."""
        self._versions = {LIVE: live.bundle.version, **{one.name: one.bundle.version for one in live.arms.values()}}
        sink = impressions
        self._impressions = {"written": sink.num_written, "dropped": sink.num_dropped} if sink else {}
        self._gauges = {
            "waiting_queries": ("Queries waiting for the stages", num_waiting),
            "requests_in_flight": ("Requests admitted and not yet answered", num_in_flight),
            "bundle_swaps": ("Swaps to another version since the start", live.num_swaps),
            "swap_failures": ("Failed attempts to swap since the start", live.num_failures),
            "swap_failing": ("1 while the registry's live version is refused", live.failure is not None),
            "arms_failing": ("1 while an arm of the registry is not served", live.arm_failure is not None),
        }
        families = list(self._collect())
        for family in families:
            family.samples = [
                sample._replace(labels={**sample.labels, "replica": self.replica}) for sample in family.samples
            ]
        return families

    def _collect(self) -> Iterator[Metric]:
        requests = HistogramMetricFamily(f"{PREFIX}request_seconds", "Time of a request", labels=["route", "status"])
        for (route, status), times in list(self.requests.items()):
            requests.add_metric([route, str(status)], times.buckets(), times.total)
        stages = HistogramMetricFamily(f"{PREFIX}stage_seconds", "Computation for one query", labels=["stage"])
        for name, times in (("recall", self.recall), ("rerank", self.rerank)):
            stages.add_metric([name], times.buckets(), times.total)
        batches = HistogramMetricFamily(f"{PREFIX}batch_queries", "Queries in one call of the stages", labels=[])
        batches.add_metric([], self.batches.buckets(), self.batches.total)
        arms = HistogramMetricFamily(f"{PREFIX}arm_seconds", "Time of a recommendation by arm", labels=["arm"])
        shadows = HistogramMetricFamily(
            f"{PREFIX}shadow_shared_items", "Part of the items shown that the shadow has too", labels=["arm"]
        )
        for family, by_arm in ((arms, self.arms), (shadows, self.shadows)):
            for arm, values in list(by_arm.items()):
                family.add_metric([arm], values.buckets(), values.total)
        yield from (requests, stages, batches, arms, shadows)
        answers = CounterMetricFamily(
            f"{PREFIX}answers", "Answers by arm and source; popular is the fallback", labels=["arm", "source"]
        )
        for (arm, source), count in list(self.answers.items()):
            answers.add_metric([arm, source], count)
        yield answers
        yield _counts("impressions", "Impressions written, and dropped for lack of space", "state", self._impressions)
        yield _counts("shadow_failures", "Answers that a shadow failed to give", "arm", self.shadow_failures)
        skipped = "Requests without a shadow answer, because too many were pending"
        yield CounterMetricFamily(f"{PREFIX}shadows_skipped", skipped, self.num_shadows_skipped)
        yield _counts("refusals", "Requests refused before they were parsed", "reason", self.refusals)
        yield CounterMetricFamily(f"{PREFIX}short_answers", "Answers with fewer than k items", self.num_short)
        for name, (text, value) in self._gauges.items():
            yield GaugeMetricFamily(PREFIX + name, text, value)
        info = GaugeMetricFamily(f"{PREFIX}bundle_info", "1 for the version that answers", labels=["version", "arm"])
        for arm, version in self._versions.items():
            info.add_metric([version, arm], 1)
        yield info


def text_of(replicas: Sequence[Sequence[Metric]]) -> bytes:
    """Returns the text that Prometheus scrapes, from the families of all replicas."""
    registry = CollectorRegistry()
    registry.register(_Merged(replicas))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, replicas: Sequence[Sequence[Metric]]) -> None:
        self._families: dict[str, Metric] = {}
        for family in (one for families in replicas for one in families):
            merged = self._families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            merged.samples += family.samples

    def collect(self) -> Iterator[Metric]:
        """Yields each family once; the Prometheus client calls this."""
        yield from self._families.values()


def _counts(name: str, text: str, label: str, counts: dict[str, int]) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=[label])
    for value, count in list(counts.items()):
        family.add_metric([value], count)
    return family
