"""The model contract for evaluation, publishing, recommending, scoring and serving.

Two kinds of model files fulfil it. A `GradientModel` is trained by Ray Train and exports a `Model`; a `Fit` function
computes one in closed form. `registry` lists them by the name that a recipe gives.

Shapes: U users and I items of the training data, B users of a call, C candidates of each, W width of dense factors.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers, positions_of_rows
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet


@dataclass(frozen=True, slots=True)
class DenseFactors:
    """Factors of B users, one row each: `values` float32[B, W]."""

    values: Float32s

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: Int64s | slice) -> "DenseFactors":
        """Returns the factors of the given rows, in that order; a row may occur more than once."""
        return DenseFactors(self.values[rows])


@dataclass(frozen=True, slots=True)
class SparseFactors:
    """Factors of B users as weights of items, or of other users.

    Row b has the entries `offsets[b]:offsets[b + 1]` of `idx` int32[n] and `weights` float32[n]; offsets int64[B + 1].
    """

    offsets: Int64s
    idx: Int32s
    weights: Float32s

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: Int64s | slice) -> "SparseFactors":
        """Returns the factors of the given rows, in that order; a row may occur more than once."""
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        positions = positions_of_rows(self.offsets, rows)
        offsets = np.concatenate([[0], np.cumsum(np.diff(self.offsets)[rows])])
        return SparseFactors(offsets, self.idx[positions], self.weights[positions])


UserFactors = DenseFactors | SparseFactors
"""A model's representation of B users: small, picklable, and sufficient to score any items."""


@dataclass(frozen=True, slots=True)
class RecallSpace:
    """Vectors whose inner product orders a user's items (exactly or nearly) as the model's scores do.

    Attributes:
        item_vectors: float32[I, Q].
        query_width: Q; the first Q columns of a user's dense factors are the query.
    """

    item_vectors: Float32s

    @property
    def query_width(self) -> int:
        """Q."""
        return int(self.item_vectors.shape[1])


class Scorer(Protocol):
    """Scores users' items in two steps, so that a user's factors are computed once."""

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the factors of trained users.

        Args:
            user_idx: int64[B], each in 0..U-1.
        """
        ...

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the scores of each user's items; higher is better.

        A score depends on its user and item alone, up to the rounding of float32 sums; the scores of a call with one
        user are always the same bits, so that a batch job and a request agree. The array is the caller's to overwrite.

        Args:
            users: Factors of B users, of this model.
            item_idx: [B, C]; None: the whole catalogue, C = I.

        Returns:
            float32[B, C].
        """
        ...


class Model(Scorer, Protocol):
    """A trained model on the CPU: read-only, and safe to call from several threads."""

    @property
    def num_users(self) -> int:
        """U."""
        ...

    @property
    def num_items(self) -> int:
        """I."""
        ...

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:
        """Returns the factors of one user from a history; None: the model cannot fold in.

        Args:
            history: Items of the user, oldest first; at least one.
            user_idx: A trained user, whose history has grown since; None: a new user.
        """
        ...

    def recall_space(self) -> RecallSpace | None:
        """Returns the vectors that recall searches; None: recall ranks the whole catalogue by `scores`."""
        ...

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours | None:
        """Returns the items most similar to each item; None: the model does not compare items.

        Args:
            num_neighbours: At most this many per item.
            executor: Runs blocks of a large catalogue.
        """
        ...

    def save(self, directory: Path) -> None:
        """Writes the model's files into an existing directory; `registry.load_model` reads them back."""
        ...


class SplitModel(Model, Protocol):
    """A trained model that may have the rows of some users only; the workers that have them save its parts."""

    user_arrays: ClassVar[tuple[str, ...]]
    """Names of the arrays with a row per user."""

    def files(self) -> tuple[Mapping[str, Any], Mapping[str, npt.NDArray[Any]]]:
        """Returns the header and the arrays that `save` writes."""
        ...


@dataclass(frozen=True, slots=True)
class TensorBatch:
    """One optimizer step's share of a worker: B positives (0 is possible), C = 1 + N items of each."""

    user_idx: Tensor
    """int64[B]."""
    item_idx: Tensor
    """Integers [B, C]; column 0 is the positive. With ratings C = 1."""
    weight: Tensor
    """float32[B], of the positives."""
    rating: Tensor | None
    """float32[B] for the explicit objective, else None."""
    global_batch_size: int
    """Positives of this step over all workers."""
    recent: Tensor | None = None
    """The user's latest items before the positive, latest first, int32[B, L]; -1 where there are fewer. None: the model
    does not use them."""

    @property
    def num_pairs(self) -> int:
        """Pairs of this worker, B x C."""
        return self.item_idx.numel()


USERS = "user_idx"
"""The field of a batch that names users."""


class GradientModel(nn.Module, ABC):
    """A model in training: a module whose forward pass is its loss, so that DDP can wrap it."""

    user_tables: ClassVar[tuple[str, ...]]
    """State dict names of the parameters with a row per user."""
    item_tables: ClassVar[tuple[str, ...]]
    """Likewise for each item; all other parameters do not depend on the data's users and items."""
    batch_tables: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parameters with a row per user or item of which a step reads only the rows that a field of the batch names, by
    that field: `user_idx`, `item_idx` or `recent`. The forward pass must work as well with tables of these rows alone
    and indices into those. Empty: a step reads all rows."""
    num_users: int
    """Users whose rows the model has."""
    num_items: int

    @abstractmethod
    def forward(self, batch: TensorBatch) -> Tensor:
        """Returns this worker's part of the step's loss, a scalar.

        It includes regularisation and is divided by the global batch, so that gradients of workers add up.
        """

    def keep_users(self, users: range) -> None:
        """Drops the rows of all other users."""
        for name in self.user_tables:
            rows = self.get_parameter(name).detach()[users.start : users.stop].clone()
            self.register_parameter(name, nn.Parameter(rows))
        self.num_users = len(users)

    @abstractmethod
    def export(self) -> Model:
        """Returns the model as it is now, in evaluation mode; it shares this module's weights."""

    @abstractmethod
    def parameters_of(self, files: Path) -> Mapping[str, Float32s]:
        """Returns parameters that give the scores of an exported model, by their names in the state dict.

        Args:
            files: Directory of the model's files, of the same model with any users and items.

        Raises:
            IntegrityError: A file is missing or damaged.
        """


class Build(Protocol):
    """Makes a gradient model with its initial weights: a function of the recipe's seed."""

    def __call__(self, prepared: PreparedSet, recipe: Recipe, users: range | None = None) -> GradientModel:
        """Returns the untrained model of a prepared set.

        Args:
            prepared: The set.
            recipe: Model, training and seed.
            users: The only users whose rows the model is to have, for a model with `batch_tables`; their initial rows
                do not depend on which these are. None: all users.
        """
        ...


class Fit(Protocol):
    """Computes a model from a prepared set's training interactions, without epochs."""

    def __call__(self, prepared: PreparedSet, recipe: Recipe, executor: Executor) -> Model:
        """Returns the fitted model."""
        ...
