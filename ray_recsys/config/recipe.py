"""The full recipe: everything a run depends on. Unknown keys and values out of range are refused."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from ray_recsys.config.data import InputRecipe, ItemsRecipe, PrepareRecipe, SplitRecipe
from ray_recsys.config.models import ModelRecipe, NeuMFRecipe
from ray_recsys.config.section import Section
from ray_recsys.config.serving import BundleRecipe, EvaluateRecipe, ServeRecipe
from ray_recsys.config.tracking import TrackRecipe
from ray_recsys.config.training import ClusterRecipe, FeedRecipe, TrainRecipe, TuneRecipe

DEFAULT_MODEL = "neumf"


class Recipe(Section):
    """A full recipe; every field has a default that works on a laptop."""

    seed: int = Field(default=42, ge=0, lt=2**63)
    """Seed of splits, negatives, initial weights and shuffles."""
    input: InputRecipe = InputRecipe()
    items: ItemsRecipe = ItemsRecipe()
    prepare: PrepareRecipe = PrepareRecipe()
    split: SplitRecipe = SplitRecipe()
    model: ModelRecipe = NeuMFRecipe()
    feed: FeedRecipe = FeedRecipe()
    train: TrainRecipe = TrainRecipe()
    tune: TuneRecipe = TuneRecipe()
    evaluate: EvaluateRecipe = EvaluateRecipe()
    bundle: BundleRecipe = BundleRecipe()
    serve: ServeRecipe = ServeRecipe()
    cluster: ClusterRecipe = ClusterRecipe()
    track: TrackRecipe = TrackRecipe()

    @model_validator(mode="before")
    @classmethod
    def _default_model(cls, data: Any) -> Any:
        """A `[model]` section without a name describes the default model."""
        if isinstance(data, Mapping) and isinstance(model := data.get("model"), Mapping) and "name" not in model:
            return {**data, "model": {"name": DEFAULT_MODEL, **model}}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.input.timestamp_column is None and self.split.method not in ("random_per_user", "given"):
            raise ValueError(
                f"split.method = {self.split.method!r} needs times, but input.timestamp_column is not set; "
                "without times only split.method = 'random_per_user' and 'given' are possible"
            )
        if self.model.name == "lightgcn" and self.train.objective == "explicit":
            raise ValueError("train.objective = 'explicit': model.name = 'lightgcn' ranks, it does not predict ratings")
        if isinstance(self.model, NeuMFRecipe) and (pretrain := self.model.pretrain) is not None:
            objectives = {branch.train.objective for branch in (pretrain.gmf, pretrain.mlp) if branch is not None}
            if objectives != {self.train.objective}:
                raise ValueError(
                    f"train.objective = {self.train.objective!r}, but a branch in model.pretrain has another one"
                )
        if self.cluster.placement == "device":
            if self.feed.negatives != "uniform" and self.train.objective == "implicit":
                raise ValueError("cluster.placement = 'device' draws uniform negatives; set feed.negatives = 'uniform'")
            if self.train.optimizer == "sparse_adam":
                raise ValueError(
                    "cluster.placement = 'device': sparse_adam finds a batch's rows on the host; set train.optimizer = "
                    "'adam' or cluster.placement = 'worker'"
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
