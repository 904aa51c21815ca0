"""The `[model]` section of a recipe: one class per model, selected by `name`."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ray_recsys.config.section import Fraction, Section
from ray_recsys.config.space import Choice, Distribution, LogUniform, Uniform
from ray_recsys.config.training import FeedRecipe, TrainRecipe

_WIDTH_AND_RATE: dict[str, Distribution] = {
    "model.embedding_dim": Choice(choice=(8, 16, 32, 64)),
    "train.learning_rate": LogUniform(log_uniform=(3e-4, 1e-2)),
}

_RECENCY: dict[str, Distribution] = {
    "model.recency_half_life": LogUniform(log_uniform=(2.0, 100.0)),
    "model.recency_floor": Uniform(uniform=(0.0, 0.1)),
}
_SIMILARITY: dict[str, Distribution] = {
    "model.num_neighbours": Choice(choice=(20, 50, 100, 200)),
    "model.alpha": Uniform(uniform=(0.3, 0.8)),
}


class PopularityRecipe(Section):
    """Ranks items by their number of training interactions."""

    default_space: ClassVar[dict[str, Distribution]] = {}

    name: Literal["popularity"] = "popularity"
    half_life_days: float | None = Field(default=None, gt=0)
    """Half-life of an interaction's weight, in days before the latest interaction; None: all weigh 1."""


class SimilarityRecipe(Section):
    """Similarity of items or of users, as `core.models.similarity` computes it: cosine, corrected."""

    num_neighbours: PositiveInt = 100
    """Number of most similar rows kept per row."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """Similarity of a to its neighbour b is common / (|a|^2(1 - alpha) x |b|^2 alpha + shrinkage); 0.5: the cosine."""
    shrinkage: float = Field(default=0.0, ge=0)
    """Added to the denominator: similarities that few interactions support shrink towards 0."""
    significance: int = Field(default=0, ge=0)
    """Similarities with fewer than this many interactions in common are scaled by common / significance; 0: off."""


class HistoryWeightsRecipe(Section):
    """Weights of the items of a user's history in scoring."""

    recency_half_life: float | None = Field(default=None, gt=0)
    """Half-life of a history item's weight, in interactions before the user's last; None: all weigh 1."""
    recency_floor: Fraction = 0.0
    """Lower bound of an old item's weight."""


class ItemKNNRecipe(SimilarityRecipe, HistoryWeightsRecipe):
    """Item-based collaborative filtering (Sarwar et al. 2001; Deshpande and Karypis 2004)."""

    default_space: ClassVar[dict[str, Distribution]] = {**_SIMILARITY, **_RECENCY}

    name: Literal["item_knn"] = "item_knn"
    weight_by_repetition: bool = False
    """Whether a history item's weight grows with 1 + ln(repetition)."""


class UserKNNRecipe(SimilarityRecipe, HistoryWeightsRecipe):
    """User-based collaborative filtering (Resnick et al. 1994; Herlocker et al. 1999).

    The weights of the history are those of the user whose neighbours are looked for; the neighbours have their own.
    """

    default_space: ClassVar[dict[str, Distribution]] = {**_SIMILARITY, **_RECENCY}

    name: Literal["user_knn"] = "user_knn"
    neighbour_half_life: float | None = Field(default=None, gt=0)
    """Half-life of the contribution of a neighbour's item, in interactions before the neighbour's last."""
    neighbour_floor: Fraction = 0.0
    """Lower bound of the contribution of a neighbour's old item."""


class EASERecipe(HistoryWeightsRecipe):
    """EASE (Steck 2019): the linear item-to-item model in closed form."""

    default_space: ClassVar[dict[str, Distribution]] = {
        "model.l2": LogUniform(log_uniform=(10.0, 5000.0)),
        **_RECENCY,
    }

    name: Literal["ease"] = "ease"
    l2: float = Field(default=500.0, gt=0)
    """Added to the diagonal of the Gram matrix; more for more interactions."""
    max_memory_gb: float = Field(default=8.0, gt=0)
    """Maximum memory of the dense matrices; larger catalogues are refused."""
    weight_by_repetition: bool = False
    """Whether a history item's weight grows with 1 + ln(repetition)."""


class IALSRecipe(HistoryWeightsRecipe):
    """iALS (Hu et al. 2008) as Rendle et al. 2022 regularise it."""

    default_space: ClassVar[dict[str, Distribution]] = {
        "model.embedding_dim": Choice(choice=(32, 64, 128, 256)),
        "model.l2": LogUniform(log_uniform=(1e-3, 3e-2)),
        "model.unobserved_weight": LogUniform(log_uniform=(0.03, 1.0)),
        **_RECENCY,
    }

    name: Literal["ials"] = "ials"
    embedding_dim: PositiveInt = 128
    l2: float = Field(default=0.005, gt=0)
    """Strength of the regularisation, before it is scaled by frequency."""
    unobserved_weight: float = Field(default=0.3, gt=0)
    """Weight of every user-item pair; an interaction adds 1."""
    nu: float = Field(default=1.0, ge=0)
    """Exponent of the frequency that scales the regularisation: 0 is uniform, 1 by frequency."""
    epochs: PositiveInt = 12
    """Number of alternating solves of all items and all users."""
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the initial user vectors, divided by sqrt(embedding_dim)."""


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


class MLPBranchRecipe(Section):
    """The MLP of NeuMF, standalone or as a branch."""

    embedding_dim: PositiveInt = 32
    """Width of the embeddings of users and of items; NeuMF has them for each branch."""
    mlp_layers: tuple[PositiveInt, ...] = Field(default=(64, 32, 16), min_length=1)
    """Output widths of the MLP's hidden layers; its input is 2 x embedding_dim."""
    dropout: Fraction = 0.0
    """After each hidden layer of the MLP; a positive and its negatives drop the same units."""
    layer_norm: bool = False
    """LayerNorm before each activation of the MLP."""
    init_std: float = Field(default=0.01, gt=0)
    """Standard deviation of the normal initial embeddings."""


class MLPRecipe(MLPBranchRecipe):
    """The MLP alone (He et al. 2017): NeuMF without its GMF branch, biases apart."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE
    gmf_dim: ClassVar[int] = 0
    gmf_loss_weight: ClassVar[float] = 0.0
    gmf_output: ClassVar[bool] = False
    recent_items: ClassVar[int] = 0
    recent_half_lives: ClassVar[tuple[float, ...]] = ()

    name: Literal["mlp"] = "mlp"


class BranchRecipe(Section):
    """Pre-training of one branch of NeuMF."""

    feed: FeedRecipe = FeedRecipe()
    train: TrainRecipe = TrainRecipe()

    @model_validator(mode="after")
    def _no_refit(self) -> Self:
        if self.train.refit:
            raise ValueError("refit is the recipe's own train.refit: with it, the branches are trained again as well")
        return self


class PretrainRecipe(Section):
    """Branches of NeuMF that are pre-trained separately (He et al. 2017, section 3.4.1)."""

    alpha: float = Field(default=0.5, ge=0, le=1)
    """Share of the GMF branch in the fused logit, alpha x GMF + (1 - alpha) x MLP; only if both are trained first."""
    gmf_model: Literal["gmf", "mf"] = "gmf"
    """Model of the pre-trained GMF branch: GMF with its output weights, as in the paper, or plain MF."""
    gmf: BranchRecipe | None = BranchRecipe()
    """None: this branch starts from scratch."""
    mlp: BranchRecipe | None = BranchRecipe()
    """None: this branch starts from scratch."""

    @model_validator(mode="after")
    def _has_a_branch(self) -> Self:
        if self.gmf is None and self.mlp is None:
            raise ValueError("neither gmf nor mlp is trained first; leave pretrain out")
        return self


class NeuMFRecipe(MLPBranchRecipe):
    """NeuMF (He et al. 2017)."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE

    name: Literal["neumf"] = "neumf"
    gmf_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of the auxiliary loss on GMF logit + biases, which makes recall rank well on its own."""
    gmf_output: bool = True
    """Whether the GMF branch has output weights, as in the paper; without them it is a plain inner product."""
    recent_items: int = Field(default=0, ge=0)
    """Number of the user's latest items before the predicted one that add to the user's vectors; 0: none, as in the
    paper."""
    recent_half_lives: tuple[PositiveFloat, ...] = Field(default=(2.0, 12.0), min_length=1)
    """The recent items enter as weighted means, one per half-life, which counts items."""
    pretrain: PretrainRecipe | None = None
    """Trains the branches first; None: NeuMF is trained from scratch."""

    @property
    def gmf_dim(self) -> int:
        """Width of the GMF embeddings."""
        return self.embedding_dim


class LightGCNRecipe(Section):
    """LightGCN (He et al. 2020), trained by BPR: set feed.num_negatives = 1 for the paper's loss."""

    default_space: ClassVar[dict[str, Distribution]] = _WIDTH_AND_RATE

    name: Literal["lightgcn"] = "lightgcn"
    embedding_dim: PositiveInt = 64
    num_layers: PositiveInt = 3
    """Propagations over the graph; the embeddings are the mean of all layers, the first included."""
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the normal initial embeddings."""


ModelRecipe = Annotated[
    PopularityRecipe
    | ItemKNNRecipe
    | UserKNNRecipe
    | EASERecipe
    | IALSRecipe
    | MFRecipe
    | GMFRecipe
    | MLPRecipe
    | NeuMFRecipe
    | LightGCNRecipe,
    Field(discriminator="name"),
]


def num_recent_items(model: ModelRecipe) -> int:
    """Returns how many recent items a model wants to see of each positive's user."""
    return model.recent_items if isinstance(model, NeuMFRecipe) else 0
