"""Recipe sections for evaluation, the bundle and the Serve graph."""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from ray_recsys.config.section import Section


class EvaluateRecipe(Section):
    """Metrics and their protocol."""

    protocol: Literal["full", "sampled"] = "full"
    """full: every item that the user has not seen is a candidate; sampled: the held-out item + num_sampled."""
    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    num_sampled: PositiveInt = 99
    """Unseen items drawn per held-out item under the sampled protocol."""
    max_users: PositiveInt | None = None
    """Evaluate about this many users, a sample by a hash of their index and the seed; none: every user."""
    popularity_half_life_days: float = Field(default=30.0, gt=0)
    """Half-life of the baseline Recent popularity, which is evaluated where the split is by global time."""
    users_per_batch: PositiveInt = 256


class BundleRecipe(Section):
    """What publish derives from the model and adds to the bundle."""

    num_neighbours: PositiveInt = 50
    """Similar items kept per item."""
    min_ratio: float = Field(default=0.98, ge=0)
    """Required part of the live version's `gate_metric`, where both were measured on the same data; 0: no gate."""
    gate_metric: str = "NDCG@10"
    """Validation metric that the gate compares."""
    max_exact_values: int = Field(default=1 << 21, ge=0)
    """Recall and similar items compare with every item up to this many values (items x width): 2 M are searched in a
    millisecond. Above it they use lists of an inverted file."""
    min_recall: float = Field(default=0.95, gt=0, le=1)
    """Part of the exact candidates that lists must find, on average over users; otherwise the search stays exact."""
    tuned_candidates: PositiveInt = 200
    """Number of candidates at which `min_recall` is measured."""


class ServeRecipe(Section):
    """The Serve graph."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0: a free port."""
    num_candidates: PositiveInt = 200
    """Candidates that recall passes to rerank, unless the request sets another number."""
    max_k: PositiveInt = 500
    max_candidates: PositiveInt = 2000
    max_history: PositiveInt = 1000
    max_allowed: PositiveInt = 10_000
    """Items of an allow-list."""
    max_list_items: PositiveInt = 1_000_000
    """Items of a list uploaded by PUT /v1/lists/{name}; its body may have 16 bytes for each, and 1 MiB."""
    ingress_replicas: PositiveInt | None = None
    """none: 2 where the cluster has at least 2 CPUs, so that one remains when the other dies or is replaced."""
    recall_replicas: PositiveInt = 1
    rerank_replicas: PositiveInt = 1
    fused: bool = True
    """Both stages run in the ingress's replicas, with no hop between processes: the fastest where one replica holds the
    bundle; false: each stage has its own replicas and scales separately."""
    max_waiting: PositiveInt = 256
    """Requests that may wait in an ingress replica; it refuses more with 503, rather than answer them late."""
    timeout_s: float = Field(default=10.0, gt=0)
    """A request without an answer from the stages' replicas after this time is refused with 503."""
    allowed_hosts: tuple[str, ...] = ()
    """Host header names accepted in addition to loopback's; none on a non-loopback host: every name."""
    allow_open: bool = False
    """Listen to other machines although there are no API keys."""
    rate_per_key: float | None = Field(default=None, gt=0)
    """Requests per second and API key that an ingress replica answers; none: no limit."""
    access_log: bool = False
    """A line of JSON per request, in the replicas' logs."""
    slow_ms: float = Field(default=500.0, gt=0)
    """Requests that take longer are logged, with or without the access log."""
    impressions: str | None = None
    """Directory of Parquet files that record what was shown to whom, for `ray-recsys ab`; none: nothing is recorded."""
    impressions_max_gb: float = Field(default=10.0, gt=0)
    """Size of that directory above which impressions are dropped and counted."""
    cpus_per_replica: float = Field(default=0.25, gt=0)
    """CPUs that Ray reserves for a replica; the default lets the graph start on one core."""

    def num_ingresses(self, num_cpus: float) -> int:
        """Returns the number of ingress replicas on a cluster with this many CPUs."""
        return self.ingress_replicas or min(2, max(1, int(num_cpus)))

    @model_validator(mode="after")
    def _within_max_candidates(self) -> Self:
        for name in ("num_candidates", "max_k"):
            if getattr(self, name) > self.max_candidates:
                raise ValueError(f"{name} must be <= max_candidates = {self.max_candidates}")
        return self
