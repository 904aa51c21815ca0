"""Typed recipes. `files` reads and writes them as TOML; `messages` formats their errors."""

from ray_recsys.config.data import DropRule, InputRecipe, ItemsRecipe, PrepareRecipe, SplitRecipe
from ray_recsys.config.models import (
    BranchRecipe,
    EASERecipe,
    GMFRecipe,
    HistoryWeightsRecipe,
    IALSRecipe,
    ItemKNNRecipe,
    LightGCNRecipe,
    MFRecipe,
    MLPRecipe,
    ModelRecipe,
    NeuMFRecipe,
    PopularityRecipe,
    PretrainRecipe,
    SimilarityRecipe,
    UserKNNRecipe,
    num_recent_items,
)
from ray_recsys.config.recipe import Recipe
from ray_recsys.config.serving import BundleRecipe, EvaluateRecipe, ServeRecipe
from ray_recsys.config.tracking import TrackRecipe
from ray_recsys.config.training import ClusterRecipe, FeedRecipe, TrainRecipe, TuneRecipe

__all__ = [
    "BranchRecipe",
    "BundleRecipe",
    "ClusterRecipe",
    "DropRule",
    "EASERecipe",
    "EvaluateRecipe",
    "FeedRecipe",
    "GMFRecipe",
    "HistoryWeightsRecipe",
    "IALSRecipe",
    "InputRecipe",
    "ItemKNNRecipe",
    "ItemsRecipe",
    "LightGCNRecipe",
    "MFRecipe",
    "MLPRecipe",
    "ModelRecipe",
    "NeuMFRecipe",
    "PopularityRecipe",
    "PrepareRecipe",
    "PretrainRecipe",
    "Recipe",
    "ServeRecipe",
    "SimilarityRecipe",
    "SplitRecipe",
    "TrackRecipe",
    "TrainRecipe",
    "TuneRecipe",
    "UserKNNRecipe",
    "num_recent_items",
]
