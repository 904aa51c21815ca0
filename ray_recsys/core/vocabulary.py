"""External ids ↔ contiguous indices, in a memory-mapped Arrow file that is searched by bisection.

A vocabulary file has one row per index and three columns: `id` sorted ascending, `idx` the index of that id, and
`place`, where `place[i]` is the row of index i. Ids are integers, or texts; a text that is an integer in plain decimal
form (`7` and `-7`, but not `07`, `+7`, `7.0` or what int64 cannot hold) names the same id as the integer.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.errors import DataError, IntegrityError

ExternalId = int | str

_MIN_INT64, _MAX_INT64 = -(2**63), 2**63 - 1
_PLAIN_INTEGER = r"^(0|-?[1-9][0-9]{0,18})$"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Indices of B ids; `idx` is meaningless where `is_known` is false."""

    idx: Int64s
    is_known: Bools

    @property
    def known(self) -> Int64s:
        """Indices of the known ids only, in the order of the query."""
        return self.idx[self.is_known]

    @property
    def num_unknown(self) -> int:
        """Number of ids that the vocabulary lacks."""
        return int(np.count_nonzero(~self.is_known))


class _SortedIds(Sequence[Any]):
    """Arrow ids as a sequence that `bisect` can probe."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        return self._ids[index].as_py()


class Vocabulary:
    """Distinct ids of users or items; an unknown id is reported as such and never gets an index."""

    def __init__(self, table: pa.Table) -> None:
        """Takes a table with the three columns of a vocabulary file; use `open` for a file."""
        self.sorted_ids: pa.Array = _one_chunk(table["id"])
        self._idx: npt.NDArray[Any] = _one_chunk(table["idx"]).to_numpy(zero_copy_only=True)
        self._row: npt.NDArray[Any] = _one_chunk(table["place"]).to_numpy(zero_copy_only=True)
        self._is_integer: bool = pa.types.is_integer(self.sorted_ids.type)

    @classmethod
    def of(cls, ids: pa.Array | pa.ChunkedArray) -> Self:
        """Returns an in-memory vocabulary of distinct ids, where the i-th id has index i.

        Raises:
            DataError: The ids are neither integers nor strings, one is null or repeated, or there are none.
        """
        return cls(_vocabulary_table(ids))

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the vocabulary in a file, memory-mapped: a lookup reads only the pages that it probes.

        Raises:
            IntegrityError: The file is not a vocabulary.
        """
        try:
            with pa.memory_map(str(path)) as source:
                return cls(pa.ipc.open_file(source).read_all())
        except (pa.ArrowInvalid, KeyError) as error:
            raise IntegrityError(f"{path} is not a vocabulary ({error})", remedy="publish the bundle again") from error

    def __len__(self) -> int:
        return len(self.sorted_ids)

    @property
    def is_integer(self) -> bool:
        """Whether the ids are integers; they are strings otherwise."""
        return self._is_integer

    def find(self, external_id: ExternalId) -> int | None:
        """Returns the index of one id, or None if it is unknown.

        `7` and `"7"` name the same id, so that an id typed into a URL or a form finds its integer.
        """
        value = self._native(external_id)
        if value is None:
            return None
        row = bisect.bisect_left(_SortedIds(self.sorted_ids), value)
        if row == len(self) or self.sorted_ids[row].as_py() != value:
            return None
        return int(self._idx[row])

    def lookup(self, ids: pa.Array | pa.ChunkedArray | Sequence[ExternalId | None]) -> Lookup:
        """Returns the indices of B ids; a null is unknown.

        Raises:
            DataError: The ids are neither integers nor strings.
        """
        queries = self._queries(ids)
        low = np.zeros(len(queries), np.int64)
        high = np.full(len(queries), len(self), np.int64)
        for _ in range(len(self).bit_length()):
            middle = (low + high) // 2
            probe = self.sorted_ids.take(pa.array(np.minimum(middle, len(self) - 1)))
            is_right = pc.less(probe, queries).fill_null(False).to_numpy(zero_copy_only=False)
            is_open = low < high
            low = np.where(is_open & is_right, middle + 1, low)
            high = np.where(is_open & ~is_right, middle, high)
        row = np.minimum(low, len(self) - 1)
        is_equal = pc.equal(self.sorted_ids.take(pa.array(row)), queries).fill_null(False)
        return Lookup(self._idx[row].astype(np.int64), is_equal.to_numpy(zero_copy_only=False))

    def ids_of(self, idx: npt.NDArray[np.integer[Any]]) -> pa.Array:
        """Returns the ids of indices in [0, len)."""
        return self.sorted_ids.take(pa.array(self._row[idx]))

    def id_of(self, idx: int) -> ExternalId:
        """Returns the id of one index, in its original type."""
        external_id: ExternalId = self.sorted_ids[int(self._row[idx])].as_py()
        return external_id

    def _native(self, external_id: ExternalId) -> ExternalId | None:
        if not self._is_integer:
            return str(external_id)
        try:
            value = int(external_id)
        except ValueError:
            return None
        return value if _MIN_INT64 <= value <= _MAX_INT64 and str(value) == str(external_id) else None

    def _queries(self, ids: pa.Array | pa.ChunkedArray | Sequence[ExternalId | None]) -> pa.Array:
        if isinstance(ids, pa.ChunkedArray | pa.Array):
            return self._cast(_one_chunk(ids) if isinstance(ids, pa.ChunkedArray) else ids)
        native = [None if external_id is None else self._native(external_id) for external_id in ids]
        return pa.array(native, self.sorted_ids.type)

    def _cast(self, ids: pa.Array) -> pa.Array:
        if pa.types.is_null(ids.type):
            return ids.cast(self.sorted_ids.type)
        queries = normal_ids(ids)
        if queries.type == self.sorted_ids.type or not self._is_integer:
            return queries.cast(self.sorted_ids.type)
        return integers_of(queries)


def normal_ids(ids: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Returns ids in one chunk as int64 or large_string, the two types of a vocabulary.

    Raises:
        DataError: The ids are neither integers nor strings.
    """
    kind = ids.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_integer(kind):
        return _one_chunk(ids.cast(pa.int64()))
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _one_chunk(ids.cast(pa.large_string()))
    raise DataError(f"ids cannot be of type {ids.type}", remedy="give integers or strings")


def integers_of(texts: pa.Array) -> pa.Array:
    """Returns the integer that each text is, int64; null for any other text and for null."""
    digits = pc.utf8_ltrim(texts, characters="-")
    largest = str(_MAX_INT64)
    # Texts of equal length sort like their numbers; all shorter ones fit.
    is_short = pc.less(pc.utf8_length(digits), len(largest))
    fits = pc.or_(pc.or_(is_short, pc.less_equal(digits, largest)), pc.equal(texts, str(_MIN_INT64)))
    is_integer = pc.and_(pc.match_substring_regex(texts, _PLAIN_INTEGER), fits)
    return pc.if_else(is_integer, texts, pa.scalar(None, texts.type)).cast(pa.int64())


def are_integers(texts: pa.Array) -> bool:
    """Returns whether every text that is not null is an integer."""
    return bool(integers_of(texts).null_count == texts.null_count)


def write_vocabulary(path: Path, ids: pa.Array | pa.ChunkedArray) -> None:
    """Writes the vocabulary of distinct ids, where the i-th id has index i.

    Raises:
        DataError: The ids are neither integers nor strings, one is null or repeated, or there are none.
    """
    table = _vocabulary_table(ids)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=max(1, len(table)))


def _vocabulary_table(ids: pa.Array | pa.ChunkedArray) -> pa.Table:
    ids = normal_ids(ids)
    if len(ids) == 0:
        raise DataError("a vocabulary needs at least one id")
    order = pc.sort_indices(ids).to_numpy()
    sorted_ids = ids.take(pa.array(order))
    _check_distinct(sorted_ids)
    row = np.empty(len(order), np.int64)
    row[order] = np.arange(len(order))
    return pa.table({"id": sorted_ids, "idx": pa.array(order.astype(np.int64)), "place": pa.array(row)})


def _check_distinct(sorted_ids: pa.Array) -> None:
    if sorted_ids.null_count:
        raise DataError(f"{sorted_ids.null_count} ids are null", remedy="give every user and item an id")
    is_repeated = pc.equal(sorted_ids[1:], sorted_ids[: len(sorted_ids) - 1])
    if pc.any(is_repeated).as_py():
        row = pc.index(is_repeated, True).as_py()
        raise DataError(f"id {sorted_ids[row].as_py()!r} occurs more than once", remedy="give distinct ids")


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])
