"""The interactions of a partition's users as columns, while prepare works on them. n: rows, U: users of the partition.

Also the Arrow file in which they wait for the next step. Knows nothing of the rules that drop or hold out a row.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.core.preparing.scatter import read_arrow, write_arrow

TRAINING, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class UserRows:
    """Columns [n] of a partition; None: the log has no such column, or no step has set it yet."""

    user: npt.NDArray[np.integer]
    """Place of the user among the partition's, which are in order of their ids."""
    item: npt.NDArray[np.integer]
    """Place of the item among all of the log, which are in order of their ids."""
    time: npt.NDArray[np.integer] | None = None
    """In the log's unit since 1970."""
    rating: npt.NDArray[np.float32] | None = None
    repetition: npt.NDArray[np.integer] | None = None
    label: npt.NDArray[np.integer] | None = None
    """TRAINING, VALIDATION or TEST; None until the split is known: all rows then count as training."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[Any] | slice) -> Self:
        """Returns the rows at given places, or where a mask is true."""
        columns = {name: values[rows] for name, values in self.columns().items()}
        return replace(self, **columns)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the columns that there are, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in values.items() if column is not None}

    def is_training(self) -> npt.NDArray[np.bool_]:
        """Returns whether each row is a training interaction, as far as is known."""
        return np.ones(len(self), np.bool_) if self.label is None else self.label == TRAINING


_TYPES = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "rating": np.float32,
    "repetition": np.int32,
    "label": np.int8,
}


def write_rows(rows: UserRows, path: Path) -> None:
    """Writes rows for the next step."""
    columns = {name: pa.array(values.astype(_TYPES[name], copy=False)) for name, values in rows.columns().items()}
    write_arrow(pa.table(columns), path)


def read_rows(path: Path) -> UserRows:
    """Returns the rows that a step left behind, memory-mapped."""
    table = read_arrow(path)
    columns = {name: table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in table.column_names}
    return UserRows(**columns)
