"""Several trainings of one model that differ in their seeds, as one model: its score is the mean of their scores.

A user's factors are those of all members side by side: first their queries for recall, then the rest of each. So the
inner product that recall searches is the sum of the members' own. Memory and the cost of a request grow with the
members. Shapes: M members, B users, C candidates, I items.

When to use: where a better ranking is worth M times the cost of training and serving.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float32s, Int32s, Int64s, Integers
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import DenseFactors, Model, RecallSpace, UserFactors
from ray_recsys.core.models.files import Arrays, Header, read_model_arrays, read_model_header, save_model_files
from ray_recsys.core.models.neighbours import Neighbours

NAME = "ensemble"


class Ensemble:
    """The model.

    Args:
        members: M models of the same users and items, with dense factors.
    """

    def __init__(self, members: Sequence[Model]) -> None:
        self._members = tuple(members)
        self._spaces = [member.recall_space() for member in members]
        self._query_widths = [0 if space is None else space.query_width for space in self._spaces]
        first_user = np.zeros(1, np.int64)
        self._widths = [_dense(member.users(first_user)).shape[1] for member in members]

    @property
    def num_users(self) -> int:
        """U."""
        return self._members[0].num_users

    @property
    def num_items(self) -> int:
        """I."""
        return self._members[0].num_items

    def users(self, user_idx: Int64s) -> UserFactors:
        """Returns the factors of trained users."""
        return self._join([member.users(user_idx) for member in self._members])

    def fold_in(self, history: Int32s, user_idx: int | None = None) -> UserFactors | None:
        """Returns the factors of a user with this history, folded into every member."""
        found = [member.fold_in(history, user_idx) for member in self._members]
        known = [factors for factors in found if factors is not None]
        return self._join(known) if len(known) == len(found) else None

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        """Returns the mean of the members' scores, float32[B, C]."""
        parts = self._split(_dense(users))
        total = self._members[0].scores(parts[0], item_idx)
        for member, part in zip(self._members[1:], parts[1:], strict=True):
            total += member.scores(part, item_idx)
        total /= len(self._members)
        return total

    def recall_space(self) -> RecallSpace | None:
        """Returns the members' vectors side by side; None if a member has none."""
        spaces = [space for space in self._spaces if space is not None]
        if len(spaces) < len(self._members):
            return None
        return RecallSpace(np.concatenate([space.item_vectors for space in spaces], axis=1))

    def neighbours(self, num_neighbours: int, executor: Executor) -> Neighbours | None:
        """Returns the similar items of the first member."""
        return self._members[0].neighbours(num_neighbours, executor)

    def save(self, directory: Path) -> None:
        """Writes the members' headers and arrays into the two files of a model."""
        headers: list[Header] = []
        arrays: dict[str, npt.NDArray[Any]] = {}
        for number, member in enumerate(self._members):
            with tempfile.TemporaryDirectory() as files:
                member.save(Path(files))
                headers.append(read_model_header(Path(files)))
                arrays |= {f"{number}/{name}": values for name, values in read_model_arrays(Path(files)).items()}
        save_model_files(directory, {"name": NAME, "members": headers}, arrays)

    def _join(self, of_members: Sequence[UserFactors]) -> DenseFactors:
        values = [_dense(factors) for factors in of_members]
        queries = [part[:, :width] for part, width in zip(values, self._query_widths, strict=True)]
        rests = [part[:, width:] for part, width in zip(values, self._query_widths, strict=True)]
        return DenseFactors(np.concatenate([*queries, *rests], axis=1))

    def _split(self, values: Float32s) -> list[DenseFactors]:
        rest_widths = [width - query for width, query in zip(self._widths, self._query_widths, strict=True)]
        parts = np.split(values, np.cumsum([*self._query_widths, *rest_widths])[:-1], axis=1)
        num_members = len(self._members)
        pairs = zip(parts[:num_members], parts[num_members:], strict=True)
        return [DenseFactors(np.concatenate(pair, axis=1)) for pair in pairs]


def _dense(factors: UserFactors) -> Float32s:
    assert isinstance(factors, DenseFactors)
    return factors.values


def load(header: Header, arrays: Arrays, load_member: Callable[[Header, Arrays], Model]) -> Ensemble:
    """Reads an ensemble back.

    Args:
        header: Of the ensemble.
        arrays: Of all members.
        load_member: Makes a member of its header and arrays.
    """
    members = []
    for number, its_header in enumerate(header["members"]):
        prefix = f"{number}/"
        its_arrays = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
        members.append(load_member(its_header, its_arrays))
    return Ensemble(members)
