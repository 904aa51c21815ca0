"""Users' histories as flat arrays (CSR), and their Arrow form with one row per user.

Shape letters: U users, n interactions, both of the table at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.core.arrays import Float32s, Int32s, Int64s


@dataclass(frozen=True, slots=True)
class Interactions:
    """Interactions of U users, user after user, each user's in order of time.

    The u-th user's are `offsets[u]:offsets[u + 1]`. A column that the log lacks is None.
    """

    offsets: Int64s
    item_idx: Int32s
    timestamp_s: Int64s | None = None
    rating: Float32s | None = None
    repetition: Int32s | None = None

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        """Interactions of each user, int64[U]."""
        return np.diff(self.offsets)

    def rows(self) -> Int64s:
        """Returns the user of each interaction, as an index into these U users, int64[n]."""
        return np.repeat(np.arange(self.num_users), self.lengths)


@dataclass(frozen=True, slots=True)
class Histories:
    """U users with consecutive indices: their training interactions and the held-out ones."""

    first_user_idx: int
    training: Interactions
    validation: Interactions
    test: Interactions

    @property
    def user_idx(self) -> Int64s:
        """Indices of the users, int64[U]."""
        return np.arange(self.first_user_idx, self.first_user_idx + self.training.num_users)

    def all_interactions(self) -> Interactions:
        """Returns training and held-out interactions together, oldest first.

        Ties in time, and histories without times, keep the order training, validation, test.
        """
        parts = (self.training, self.validation, self.test)
        rows = np.concatenate([part.rows() for part in parts])
        times = _joined([part.timestamp_s for part in parts])
        order = np.argsort(rows, kind="stable") if times is None else np.lexsort((times, rows))
        columns = {name: _joined([getattr(part, name) for part in parts]) for name in COLUMNS}
        lengths = np.bincount(rows, minlength=self.training.num_users)
        return Interactions(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            **{name: values[order] for name, values in columns.items() if values is not None},
        )

    def with_held_out(self) -> Self:
        """Returns the histories whose training is everything, with nothing held out."""
        training = self.all_interactions()
        nothing = Interactions(np.zeros_like(training.offsets), training.item_idx[:0])
        return type(self)(self.first_user_idx, training, nothing, nothing)

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Returns the histories in a table of complete users (a partition of a prepared set)."""
        first = int(table["user_idx"][0].as_py()) if table.num_rows else 0
        return cls(first, *(interactions_from_table(table, prefix) for prefix in ("", "validation_", "test_")))


COLUMNS = {"item_idx": pa.int32(), "timestamp_s": pa.int64(), "rating": pa.float32(), "repetition": pa.int32()}


def _joined(parts: Sequence[npt.NDArray[Any] | None]) -> npt.NDArray[Any] | None:
    """Returns the column of all parts; None if a part lacks it."""
    there = [part for part in parts if part is not None]
    return np.concatenate(there) if len(there) == len(parts) else None


def to_table(histories: Histories, user_ids: pa.Array) -> pa.Table:
    """Returns the Arrow form: user_idx, user_id, then a list column for each column of each part."""
    columns: dict[str, pa.Array] = {"user_idx": pa.array(histories.user_idx, pa.int64()), "user_id": user_ids}
    parts = {"": histories.training, "validation_": histories.validation, "test_": histories.test}
    for prefix, part in parts.items():
        assert part.offsets[-1] < 2**31, "a partition's lists have 32-bit offsets"
        offsets = pa.array(part.offsets.astype(np.int32))
        for name, dtype in COLUMNS.items():
            values = getattr(part, name)
            if values is not None:
                columns[prefix + name] = pa.ListArray.from_arrays(offsets, pa.array(values, dtype))
    return pa.table(columns)


def interactions_from_table(table: pa.Table, prefix: str) -> Interactions:
    """Returns one part of a table of complete users; `prefix` is "" (training), "validation_" or "test_"."""
    names = [name for name in COLUMNS if prefix + name in table.column_names]
    lists = {name: _one_chunk(table[prefix + name]) for name in names}
    items = lists["item_idx"]
    offsets = items.offsets.to_numpy().astype(np.int64)
    values: dict[str, npt.NDArray[Any]] = {name: _flat(column, COLUMNS[name]) for name, column in lists.items()}
    return Interactions(offsets - offsets[0], **values)


def _one_chunk(column: pa.ChunkedArray) -> pa.ListArray:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _flat(column: pa.ListArray, dtype: pa.DataType) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.flatten().cast(dtype).to_numpy(zero_copy_only=False)
    return values
