"""The `[model]` section of a recipe: one class per model, told apart by `name`."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from ray_recsys.config.section import Fraction, Section
from ray_recsys.config.space import Choice, Distribution, LogUniform

_WIDTH_AND_RATE: dict[str, Distribution] = {
    "model.embedding_dim": Choice(choice=(8, 16, 32, 64)),
    "train.learning_rate": LogUniform(log_uniform=(3e-4, 1e-2)),
}


class PopularityRecipe(Section):
    """Ranks items by their number of training interactions."""

    default_space: ClassVar[dict[str, Distribution]] = {}

    name: Literal["popularity"] = "popularity"


class ItemKNNRecipe(Section):
    """Item-based collaborative filtering (Sarwar et al. 2001; Deshpande and Karypis 2004)."""

    default_space: ClassVar[dict[str, Distribution]] = {
        "model.num_neighbours": Choice(choice=(50, 100, 200, 400)),
        "model.shrinkage": LogUniform(log_uniform=(1.0, 300.0)),
    }

    name: Literal["item_knn"] = "item_knn"
    num_neighbours: PositiveInt = 200
    """Most similar items kept per item."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Added to the denominator of the cosine: similarities of rare items shrink towards 0."""
    significance: int = Field(default=0, ge=0)
    """Similarities of pairs with fewer than this many common users are scaled by common / significance; 0: off."""
    recency_half_life: float | None = Field(default=None, gt=0)
    """A history item's weight halves every so many interactions back from the user's last; None: all weigh 1."""


class UserKNNRecipe(Section):
    """User-based collaborative filtering (Resnick et al. 1994; Herlocker et al. 1999)."""

    default_space: ClassVar[dict[str, Distribution]] = {
        "model.num_neighbours": Choice(choice=(50, 100, 200, 400)),
        "model.shrinkage": LogUniform(log_uniform=(1.0, 300.0)),
    }

    name: Literal["user_knn"] = "user_knn"
    num_neighbours: PositiveInt = 200
    """Most similar users kept per user."""
    shrinkage: float = Field(default=10.0, ge=0)
    """Added to the denominator of the cosine: similarities of users with few items shrink towards 0."""
    significance: int = Field(default=0, ge=0)
    """Similarities of pairs with fewer than this many common items are scaled by common / significance; 0: off."""


class MFRecipe(Section):
    """Matrix factorisation with biases, by gradient descent (Koren et al. 2009; Rendle et al. 2020)."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE

    name: Literal["mf"] = "mf"
    embedding_dim: PositiveInt = 64
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the normal initial embeddings."""


class GMFRecipe(Section):
    """Generalised matrix factorisation (He et al. 2017): MF with a weight per dimension."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE

    name: Literal["gmf"] = "gmf"
    embedding_dim: PositiveInt = 64
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the normal initial embeddings."""


class NeuMFRecipe(Section):
    """NeuMF (He et al. 2017)."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE

    name: Literal["neumf"] = "neumf"
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
    gmf_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary loss on GMF logit + biases, which makes recall rank well by itself."""


ModelRecipe = Annotated[
    PopularityRecipe | ItemKNNRecipe | UserKNNRecipe | MFRecipe | GMFRecipe | NeuMFRecipe,
    Field(discriminator="name"),
]
