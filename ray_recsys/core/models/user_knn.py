"""User-based collaborative filtering: an item's score is the summed similarity of the neighbours who have it.

score(u, j) = sum over v in neighbours(u) who have j of similarity(u, v) x weight(v, j). The neighbours of trained users
are found when the model is fitted, those of a folded-in history when it is folded in. Similarity compares the weighted
history of u with the plain history of v.

When to use: where there are fewer users than items, and all histories fit in memory, since serving searches them.

Shapes: U users, I items, B users of a call, C candidates.

Source: Resnick, Iacovou, Suchak, Bergstrom, Riedl: GroupLens, CSCW 1994 (weighted sum over neighbours; without ratings
    there is no mean to subtract); `similarity` has the cosine and its corrections.
"""

from pathlib import Path

from ray_recsys.config import HistoryWeightsRecipe, Recipe, UserKNNRecipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import SparseFactors, UserFactors
from ray_recsys.core.models.files import Arrays, Header, save_model_files
from ray_recsys.core.models.similarity import Comparable, Queries, find_similar
from ray_recsys.core.models.sparse_rows import from_arrays, to_arrays, to_csr, weighted_rows
from ray_recsys.core.models.training_matrix import one_history, read_training_matrix, weigh_by_recency
from ray_recsys.core.prepared import PreparedSet


class UserKNN:
    """A fitted model; a user's factors are the most similar training users and their similarities.

    Args:
        similar: The most similar training users of U users, best first.
        histories: Training items of the same users.
        num_items: I.
        recipe: How the neighbours of a folded-in history are found.
    """

    def __init__(self, similar: SparseFactors, histories: SparseFactors, num_items: int, recipe: UserKNNRecipe) -> None:
        self._similar, self._histories, self._recipe = similar, histories, recipe
        self._comparable = Comparable.of(to_csr(histories, num_items), recipe)
        added = HistoryWeightsRecipe(recency_half_life=recipe.neighbour_half_life, recency_floor=recipe.neighbour_floor)
        self._added_by_user = to_csr(weigh_by_recency(histories, added), num_items)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self._similar)

    @property
    def num_items(self) -> int:
        """I."""
        return int(self._comparable.columns.shape[0])

    def users(self, user_idx: Int64s) -> SparseFactors:
        """Returns the neighbours of trained users."""
        return self._similar.take(user_idx)

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> SparseFactors:  # noqa: ARG002 - contract
        """Returns the neighbours of a history; a trained user who has that history is one of them."""
        query = to_csr(weigh_by_recency(one_history(history), self._recipe), self.num_items)
        return self._comparable.most_similar(Queries.of(query, self._recipe))

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns weighted sums of similarities, float32[B, C]."""
        assert isinstance(users, SparseFactors)
        return weighted_rows(users, self._added_by_user, item_idx)

    def recall_space(self) -> None:
        """Returns None: scores are no inner product of small vectors."""

    def neighbours(self, num_neighbours: int, executor: Executor) -> None:
        """Returns None: users are compared, not items."""

    def save(self, directory: Path) -> None:
        """Writes the neighbours, the histories and the recipe."""
        header = {
            "name": self._recipe.name,
            "num_items": self.num_items,
            "recipe": self._recipe.model_dump(mode="json"),
        }
        save_model_files(
            directory, header, to_arrays("similar", self._similar) | to_arrays("histories", self._histories)
        )


def fit(prepared: PreparedSet, recipe: Recipe, executor: Executor) -> UserKNN:
    """Returns the model of the training interactions."""
    assert isinstance(recipe.model, UserKNNRecipe)
    num_items = prepared.manifest.num_items
    histories = read_training_matrix(prepared)
    queries = weigh_by_recency(histories, recipe.model)
    similar = find_similar(to_csr(histories, num_items), recipe.model, executor, queries=to_csr(queries, num_items))
    return UserKNN(similar, histories, num_items, recipe.model)


def load(header: Header, arrays: Arrays) -> UserKNN:
    """Returns the model that `UserKNN.save` wrote."""
    similar, histories = (from_arrays(name, arrays) for name in ("similar", "histories"))
    num_items = header["num_items"]
    assert isinstance(num_items, int)
    return UserKNN(similar, histories, num_items, UserKNNRecipe.model_validate(header["recipe"]))
