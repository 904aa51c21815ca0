"""Typed recipes: everything a run depends on; unknown keys and values out of range are refused.

A recipe knows nothing of paths or clusters: those are arguments of a command. How it is read from TOML and written is
in `recipe_files`.
"""

import codecs
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class _Section(BaseModel):
    # inf is a number to TOML, but a recipe that holds it could not be written to JSON and read back
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _read_toml_words(cls, data: Any) -> Any:
        """TOML has no null: the word none stands for it. And true is not the number 1."""
        if not isinstance(data, Mapping):
            return data
        for key, value in data.items():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} = {str(value).lower()}: true and false are for switches alone")
        return {key: None if value == "none" else value for key, value in data.items()}


class DropRule(_Section):
    """A row of the log is dropped when its column meets every condition given; null meets `is_null` alone."""

    reason: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name under which the dropped rows are counted."""
    column: str
    """Column of the log, as named in the file."""
    matches: str | None = None
    """Regular expression (RE2) that the text of the value contains."""
    not_matches: str | None = None
    """Regular expression (RE2) that the text of the value does not contain."""
    at_most: float | None = None
    """Numeric value is at most this."""
    at_least: float | None = None
    """Numeric value is at least this."""
    is_null: bool = False
    """Value is missing."""

    @model_validator(mode="after")
    def _has_condition(self) -> Self:
        if not self.is_null and all(c is None for c in (self.matches, self.not_matches, self.at_most, self.at_least)):
            raise ValueError("a drop rule needs one of matches, not_matches, at_most, at_least, is_null")
        return self


class _FileFormat(_Section):
    format: Literal["auto", "parquet", "csv", "tsv", "movielens", "jsonl"] = "auto"
    """`auto` goes by the ending (.parquet .csv .tsv .data .dat .jsonl .ndjson); `movielens` is `::`-separated."""
    separator: str | None = Field(default=None, min_length=1, max_length=2)
    """Field separator of a text file; by default that of the format."""
    column_names: tuple[str, ...] = ()
    """Names for the columns of a text file without a header line; empty: the first line is the header."""
    encoding: str = "utf8"
    """Text encoding, e.g. latin-1."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise ValueError(f"encoding = {self.encoding!r} is not known; give one of Python's, e.g. utf8") from None
        if self.separator is not None and not self.separator.isascii():
            raise ValueError(f"separator = {self.separator!r} is not ASCII")
        return self


class InputRecipe(_FileFormat):
    """How to read the interaction log."""

    user_column: str = "user_id"
    item_column: str = "item_id"
    timestamp_column: str | None = "timestamp"
    """None: the log has no times; only the random split is possible then."""
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns"] = "auto"
    """Unit of integer times; `auto`: s below 1e11, else ms."""
    rating_column: str | None = None
    """Explicit ratings; None: every interaction counts as 1."""
    drop: tuple[DropRule, ...] = ()
    """Rules tried in order, before deduplication; the first that meets a row names its reason."""


class ItemsRecipe(_FileFormat):
    """How to read the side file of items; its columns travel to the bundle."""

    id_column: str = "item_id"
    title_column: str | None = "title"
    category_column: str | None = None


class PrepareRecipe(_Section):
    """Which interactions are kept."""

    deduplicate: Literal["first", "last", "highest_rating", "count"] = "last"
    """Which of a pair's interactions is kept; `count`: the last, with the number of them as its repetition."""
    min_rating: float | None = None
    """Interactions rated lower are dropped, after deduplication."""
    min_interactions_per_user: PositiveInt = 1
    min_interactions_per_item: PositiveInt = 1
    filter: Literal["once", "k_core"] = "once"
    """`once`: items, then users, one pass each; `k_core`: until nothing changes."""
    num_partitions: PositiveInt | None = None
    """Partitions of users; None: from the number of rows alone, so that it is the same on every cluster."""


class SplitRecipe(_Section):
    """Which interactions are held out."""

    method: Literal["leave_one_out", "global_time", "random_per_user"] = "leave_one_out"
    """`leave_one_out`: a user's last is the test, the one before the validation (ties in time: by item id)."""
    validation_fraction: Fraction = 0.1
    """Share of interactions held out for validation (not for leave_one_out)."""
    test_fraction: Fraction = 0.1
    """Share of interactions held out as test (not for leave_one_out)."""
    validation_from_s: int | None = None
    """global_time: first second of the validation period; None: by validation_fraction."""
    test_from_s: int | None = None
    """global_time: first second of the test period; None: by test_fraction."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        begins, ends = self.validation_from_s, self.test_from_s
        if begins is not None and ends is not None and begins > ends:
            raise ValueError(
                f"validation_from_s = {begins} is after test_from_s = {ends}; validation comes before the test"
            )
        if (held_out := self.validation_fraction + self.test_fraction) >= 1:
            raise ValueError(
                f"validation_fraction + test_fraction = {held_out:g} leaves nothing to train on; keep it < 1"
            )
        return self


class ModelRecipe(_Section):
    """Shape of NeuMF (He et al. 2017)."""

    embedding_dim: PositiveInt = 32
    """Width of the GMF and of the MLP embeddings, each."""
    mlp_layers: tuple[PositiveInt, ...] = Field(default=(64, 32, 16), min_length=1)
    """Output widths of the MLP's hidden layers; its input is 2 x embedding_dim."""
    dropout: Fraction = 0.0
    """After each hidden layer of the MLP."""
    layer_norm: bool = False
    """LayerNorm before each activation of the MLP."""
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the normal initial embeddings."""


class FeedRecipe(_Section):
    """The epoch stream: positives, their weights and their negatives."""

    placement: Literal["auto", "task", "worker"] = "auto"
    """Where negatives are drawn: Ray Data tasks or the train worker; `auto`: tasks only if the trainers use GPUs
    and the cluster has CPU nodes beside theirs."""
    num_negatives: PositiveInt = 4
    """Negatives per positive, drawn anew each epoch."""
    negatives: Literal["uniform", "popularity"] = "uniform"
    popularity_alpha: float = Field(default=0.75, ge=0, le=1)
    """Negatives by count^alpha, if `negatives` is popularity."""
    exclude_held_out: bool = False
    """Whether held-out items are never negatives; by default they may be, since training must not know them."""
    recency_half_life: float | None = Field(default=None, gt=0)
    """Weight of a positive halves every so many interactions back from the user's last; mean 1 a user."""
    weight_by_repetition: bool = False
    """Weight of a positive grows with 1 + ln(repetition); mean 1 a user."""
    window_interactions: PositiveInt = 50_000_000
    """Positives that a worker shuffles at once; whole partitions, at least one. An epoch begins with smaller ones."""


class TrainRecipe(_Section):
    """Optimization and where it runs."""

    objective: Literal["implicit", "explicit"] = "implicit"
    """implicit: BCE with logits over positives and negatives; explicit: MSE on ratings, without negatives."""
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 4096
    """Positives of one optimizer step over all workers."""
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    l2: float = Field(default=0.0, ge=0)
    """L2 on the embedding rows that a batch touches, per sample."""
    gmf_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary loss on GMF logit + biases, which makes recall rank well by itself."""
    early_stopping_epochs: PositiveInt | None = 5
    """Epochs without a better validation NDCG@10 after which training stops, at one with validation; None: never."""
    validate_every_epochs: PositiveInt = 1
    max_validation_users: PositiveInt = 20_000
    """Users (the first by a hash of their index) whose validation NDCG@10 decides."""
    num_workers: PositiveInt = 2
    """DDP workers."""
    use_gpu: bool = False
    """One GPU a worker."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """CPUs that Ray reserves for a worker; leave Ray Data at least one."""
    wait_for_nodes: bool = False
    """Set it on a cluster that starts nodes on demand: what is missing is then waited for instead of refused."""
    threads_per_worker: PositiveInt | None = None
    """Torch threads of a worker; None: its share of the node's cores."""
    max_failures: int = Field(default=3, ge=0)
    """Times that a lost worker is replaced."""


class TuneRecipe(_Section):
    """Search space and schedule (ASHA)."""

    num_trials: PositiveInt = 8
    max_concurrent_trials: PositiveInt = 2
    """Each trial is one process of one CPU."""
    embedding_dim: tuple[PositiveInt, ...] = Field(default=(8, 16, 32, 64), min_length=1)
    learning_rate_min: float = Field(default=3e-4, gt=0)
    learning_rate_max: float = Field(default=1e-2, gt=0)
    grace_epochs: PositiveInt = 3
    """Epochs that every trial gets."""
    reduction_factor: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.learning_rate_min > self.learning_rate_max:
            raise ValueError("learning_rate_min must be <= learning_rate_max")
        return self


class EvaluateRecipe(_Section):
    """Metrics and their protocol."""

    protocol: Literal["full", "sampled"] = "full"
    """full: every item that the user has not seen is a candidate; sampled: the held-out item + num_sampled."""
    ks: tuple[PositiveInt, ...] = Field(default=(5, 10, 20), min_length=1)
    num_sampled: PositiveInt = 99
    """Unseen items drawn per held-out item under the sampled protocol."""
    users_per_batch: PositiveInt = 256


class BundleRecipe(_Section):
    """What publish puts into a bundle beside the model."""

    num_neighbours: PositiveInt = 50
    """Similar items kept per item."""


class ServeRecipe(_Section):
    """The Serve graph."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0: a free port."""
    num_candidates: PositiveInt = 200
    """Items that recall hands to rerank unless the request says otherwise."""
    max_k: PositiveInt = 100
    max_candidates: PositiveInt = 2000
    max_history: PositiveInt = 1000
    ingress_replicas: PositiveInt = 1
    recall_replicas: PositiveInt = 1
    rerank_replicas: PositiveInt = 1
    fused: bool = True
    """Both stages run in the ingress's replicas, with no hop between processes: the fastest where one replica holds the
    bundle; false: each stage has replicas of its own, so that they scale apart."""
    max_waiting: PositiveInt = 256
    """Requests that may wait in an ingress replica; it refuses more with 503, rather than answer them late."""
    timeout_s: float = Field(default=10.0, gt=0)
    """After so long without an answer from the stages' replicas a request is refused with 503."""
    cpus_per_replica: float = Field(default=0.25, gt=0)
    """CPUs that Ray reserves for a replica; the default lets the graph start on one core."""

    @model_validator(mode="after")
    def _within_max_candidates(self) -> Self:
        for name in ("num_candidates", "max_k"):
            if getattr(self, name) > self.max_candidates:
                raise ValueError(f"{name} must be <= max_candidates = {self.max_candidates}")
        return self


class Recipe(_Section):
    """A full recipe; every field has a default that works on a laptop."""

    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of splits, negatives, initial weights and shuffles."""
    input: InputRecipe = InputRecipe()
    items: ItemsRecipe = ItemsRecipe()
    prepare: PrepareRecipe = PrepareRecipe()
    split: SplitRecipe = SplitRecipe()
    model: ModelRecipe = ModelRecipe()
    feed: FeedRecipe = FeedRecipe()
    train: TrainRecipe = TrainRecipe()
    tune: TuneRecipe = TuneRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    bundle: BundleRecipe = BundleRecipe()
    serve: ServeRecipe = ServeRecipe()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.input.timestamp_column is None and self.split.method != "random_per_user":
            raise ValueError(
                f"split.method = {self.split.method!r} needs times, but input.timestamp_column is not set; "
                "without times only split.method = 'random_per_user' is possible"
            )
        needs_ratings = {
            "train.objective = 'explicit'": self.train.objective == "explicit",
            "prepare.min_rating": self.prepare.min_rating is not None,
            "prepare.deduplicate = 'highest_rating'": self.prepare.deduplicate == "highest_rating",
        }
        asked = [setting for setting, is_set in needs_ratings.items() if is_set]
        if asked and self.input.rating_column is None:
            raise ValueError(f"{', '.join(asked)}: needs input.rating_column")
        return self
