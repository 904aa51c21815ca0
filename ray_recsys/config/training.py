"""Recipe sections on training: the epoch stream, the optimizer, the search, and the cluster that runs them."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from ray_recsys.config.section import Section
from ray_recsys.config.space import Distribution, flatten_space


class FeedRecipe(Section):
    """The epoch stream: positives, their weights and their negatives."""

    num_negatives: PositiveInt = 4
    """Negatives per positive, resampled every epoch."""
    negatives: Literal["uniform", "popularity"] = "uniform"
    popularity_alpha: float = Field(default=0.75, ge=0, le=1)
    """Negatives by count^alpha, if `negatives` is popularity."""
    exclude_held_out: bool = False
    """Whether held-out items are never negatives; by default they may be, since training must not know them."""
    recency_half_life: float | None = Field(default=None, gt=0)
    """Half-life of a positive's weight, in interactions before the user's last; normalised to mean 1 per user."""
    weight_by_repetition: bool = False
    """Weight of a positive grows with 1 + ln(repetition); normalised to mean 1 per user."""
    window_interactions: PositiveInt = 50_000_000
    """Positives that a worker shuffles at once; whole partitions, at least one. An epoch begins with smaller ones."""


class TrainRecipe(Section):
    """Optimization of models that are trained by gradient descent."""

    objective: Literal["implicit", "explicit"] = "implicit"
    """implicit: BCE with logits over positives and negatives; explicit: MSE on ratings, without negatives."""
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 4096
    """Positives of one optimizer step over all workers."""
    optimizer: Literal["sparse_adam", "adam"] = "adam"
    """adam: every step updates every row. sparse_adam: Adam for the embedding rows of the batch only, with moments and
    step counts of their own; the cost of a step does not grow with the tables, and each worker keeps only the rows of
    its own users. Models whose steps read all rows (LightGCN) are trained by adam in any case."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of matrix products; weights, gradients and the optimizer's state are float32 in any case. tf32: on NVIDIA GPUs
    only. bf16: autocast, on GPUs and CPUs that have it."""
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly from 0."""
    learning_rate_schedule: Literal["constant", "linear"] = "constant"
    """After the warm-up: constant, or falling linearly to 0 at the end of the last epoch."""
    l2: float = Field(default=0.0, ge=0)
    """L2 on the embedding rows that a batch touches, per sample."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Validation and the trained model use an exponential moving average of the weights over steps, with this decay a
    step: about the mean of the last 1 / (1 - decay) steps. None: the weights themselves. Needs `optimizer = "adam"`."""
    num_seeds: PositiveInt = 1
    """Trains the model with as many seeds, from the recipe's own on; the result is one model, whose scores are the mean
    of theirs. It costs as many times the training, the memory and the time of a request. With a refit, the first seed
    alone chooses the number of epochs; metrics of the run are the first seed's."""
    refit: bool = False
    """After the number of epochs has been chosen by validation, train again on everything, held-out interactions
    included, for that number of epochs: for a model to be published, not to be evaluated on the same data."""
    early_stopping_epochs: PositiveInt | None = 5
    """Epochs without a better validation NDCG@10 after which training stops, at one with validation; None: never."""
    max_time_s: float | None = Field(default=None, gt=0)
    """Training ends before an epoch that would take its epochs and validations beyond this time, after one at least;
    None: no limit. Models that are fitted without epochs cannot be stopped."""
    checkpoint_every_s: float = Field(default=300.0, gt=0)
    """Time between checkpoints within an epoch; there is one after each epoch too."""
    validate_every_epochs: PositiveInt = 1
    max_validation_users: PositiveInt = 20_000
    """Users (the first by a hash of their index) whose validation NDCG@10 decides."""

    @model_validator(mode="after")
    def _averages_all_rows(self) -> Self:
        if self.ema_decay is not None and self.optimizer == "sparse_adam":
            raise ValueError(
                'ema_decay averages every row at every step; set optimizer = "adam", or ema_decay = "none"'
            )
        return self


class ClusterRecipe(Section):
    """Cluster resources that a command may use."""

    num_workers: PositiveInt = 2
    """DDP workers of a training run."""
    use_gpu: bool = False
    """One GPU per worker."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """CPUs that Ray reserves for a worker; leave Ray Data at least one."""
    threads_per_worker: PositiveInt | None = None
    """Torch threads of a worker; None: its share of the node's cores."""
    placement: Literal["auto", "task", "worker", "device"] = "auto"
    """Where negatives are drawn: in Ray Data tasks, in the train worker, or on the worker's device, whose memory then
    holds all of the worker's positives. `auto`: in tasks if the workers use GPUs and the cluster has other nodes with
    CPUs, or starts nodes on demand (`wait_for_nodes`); otherwise in the worker."""
    max_failures: int = Field(default=3, ge=0)
    """Number of times that lost workers are replaced."""
    min_workers: PositiveInt | None = None
    """Train on with this many workers or more while nodes are lost; None: wait for all of `num_workers`. It needs a
    `start_timeout_s` of 100 or more, since Ray still counts a lost node for up to 40 s."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    """Maximum time to wait for resources for the workers when a node is lost for good, before training fails;
    without end if `wait_for_nodes` is set."""
    wait_for_nodes: bool = False
    """Set it on a cluster that starts nodes on demand: missing resources are then waited for instead of refused."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers = {self.min_workers} exceeds num_workers = {self.num_workers}")
        return self

    @property
    def least_workers(self) -> int:
        """Minimum number of workers to continue training."""
        return self.min_workers or self.num_workers

    @property
    def worker_text(self) -> str:
        """Description of a worker's resources."""
        return f"{self.cpus_per_worker:g} CPUs" + (" and a GPU" if self.use_gpu else "")


class TuneRecipe(Section):
    """Search space and schedule (ASHA)."""

    space: Annotated[dict[str, Distribution], BeforeValidator(flatten_space)] = Field(default={})
    """Recipe keys to search, e.g. `"train.learning_rate" = {log_uniform = [1e-4, 1e-2]}`; `choice`, `uniform` or
    `log_uniform`. Empty: the model's usual keys (width and learning rate for models trained by gradient descent)."""
    search: Literal["random", "tpe"] = "random"
    """Search algorithm: random, or by Optuna's tree-structured Parzen estimator (the extra `tune`)."""
    num_trials: PositiveInt = 8
    max_time_s: float | None = Field(default=None, gt=0)
    """The search ends after this time with the trials it has; None: with `num_trials`."""
    max_concurrent_trials: PositiveInt = 2
    """Maximum number of concurrent trials; fewer run where resources are short."""
    workers_per_trial: PositiveInt = 1
    """Data-parallel workers of a trial, each with `cluster.cpus_per_worker` CPUs, rounded up, and a GPU if
    `cluster.use_gpu`. A trial that is lost with its node restarts, at most `cluster.max_failures` times."""
    grace_epochs: PositiveInt = 3
    """Epochs that every trial gets."""
    reduction_factor: int = Field(default=2, ge=2)
    """At each rung of the schedule the best 1 / reduction_factor of the trials continue."""
