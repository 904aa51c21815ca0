"""The items of a bundle: id, popularity, title and category of each index, and ids back to indices."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.recommending.title_index import TitleIndex
from ray_recsys.core.vocabulary import ExternalId, Vocabulary, normal_ids, write_vocabulary
from ray_recsys.errors import IntegrityError

TABLE = "items.arrow"
VOCABULARY = "item_ids.arrow"
TITLES = "titles.arrow"
CATEGORIES = "categories.arrow"
COLUMNS = ("item_id", "count", "title", "category")
_LOWER = "lower_title"  # the title index; ids, without titles


@dataclass(frozen=True, slots=True)
class Item:
    """An item's public fields; title and category only where the side file has them."""

    item_id: ExternalId
    title: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """Items by index; index 0 is the most popular."""

    table: pa.Table
    vocabulary: Vocabulary
    titles: TitleIndex
    categories: Mapping[str, Int32s]
    """Items of each category, ascending; `A|B` is in categories A and B."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps the files into memory.

        Raises:
            IntegrityError: They do not belong together.
        """
        vocabulary = Vocabulary.open(directory / VOCABULARY)
        table, titles, categories = (_map(directory / name) for name in (TABLE, TITLES, CATEGORIES))
        if table.num_rows != len(vocabulary):
            raise IntegrityError(f"{directory / TABLE} has {table.num_rows} items, {VOCABULARY} {len(vocabulary)}")
        starts, rows = _lists(titles)
        index = TitleIndex(table[_LOWER].chunk(0), titles["key"].to_numpy(), starts, rows)
        starts, rows = _lists(categories)
        bounds = zip(categories["key"].to_pylist(), starts, starts[1:], strict=False)
        return cls(table, vocabulary, index, {name: rows[start:stop] for name, start, stop in bounds})

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def counts(self) -> Int64s:
        """Training interactions of each item, int64[I], descending."""
        counts: Int64s = self.table["count"].to_numpy()
        return counts

    def describe(self, item_idx: Iterable[int]) -> list[Item]:
        """Returns the public fields of each item, in the given order."""
        rows = [int(idx) for idx in item_idx]
        ids, titles, categories = (self._values(name, rows) for name in ("item_id", "title", "category"))
        return [Item(*columns) for columns in zip(ids, titles, categories, strict=True)]

    def _values(self, column: str, rows: list[int]) -> list[Any]:
        if column not in self.table.column_names:
            return [None] * len(rows)
        values = self.table[column].chunk(0)  # written as one
        return [values[row].as_py() for row in rows]

    def in_category(self, category: str) -> Int32s:
        """Returns the items of a category, or of one of the parts that `|` separates, most popular first."""
        return self.categories.get(category, np.zeros(0, np.int32))

    def search_titles(self, text: str, limit: int) -> Int32s:
        """Returns the most popular items, at most `limit`, whose title (or id, without titles) contains a text.

        Upper and lower case are the same; an empty text finds every item.
        """
        return self.titles.search(text, limit)


def write_catalogue(directory: Path, items: pa.Table) -> None:
    """Writes the files from the item table of a prepared set, whose row i is the item with index i."""
    columns = {name: items[name] for name in COLUMNS if name in items.column_names}
    columns["item_id"] = normal_ids(columns["item_id"])
    for name in ("title", "category"):
        if name in columns:
            columns[name] = columns[name].cast(pa.large_string())
    table = pa.table(columns).combine_chunks()
    titles = TitleIndex.build(table["title" if "title" in columns else "item_id"].chunk(0))
    _write(directory / TABLE, table.append_column(_LOWER, titles.texts))
    _write_lists(directory / TITLES, pa.array(titles.grams), titles.starts, titles.rows)
    names, starts, rows = _group_by_category(table)
    _write_lists(directory / CATEGORIES, names, starts, rows)
    write_vocabulary(directory / VOCABULARY, columns["item_id"])


def _group_by_category(table: pa.Table) -> tuple[pa.Array, Int64s, Int32s]:
    """Returns the names of the categories, and the items of each: `rows[starts[c]:starts[c + 1]]`."""
    if "category" not in table.column_names:
        return pa.array([], pa.large_string()), np.zeros(1, np.int64), np.zeros(0, np.int32)
    column = table["category"].chunk(0)
    parts = pc.split_pattern(column, "|")
    has_parts = pc.match_substring(column, "|").fill_null(False)
    whole = np.flatnonzero(has_parts.to_numpy(zero_copy_only=False))
    rows = np.concatenate([pc.list_parent_indices(parts).to_numpy(), whole])
    names = pa.chunked_array([pc.list_flatten(parts), column.filter(has_parts)]).combine_chunks()
    encoded = names.dictionary_encode()
    codes = encoded.indices.to_numpy()
    pairs = np.unique(np.stack([codes, rows], axis=1), axis=0)  # `Drama|Drama` is in Drama once
    starts = np.searchsorted(pairs[:, 0], np.arange(len(encoded.dictionary) + 1))
    return encoded.dictionary, starts, pairs[:, 1].astype(np.int32)


def _write(path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))


def _write_lists(path: Path, keys: pa.Array, starts: Int64s, rows: Int32s) -> None:
    lists = pa.LargeListArray.from_arrays(pa.array(starts, pa.int64()), pa.array(rows, pa.int32()))
    _write(path, pa.table({"key": keys, "rows": lists}))


def _lists(table: pa.Table) -> tuple[Int64s, Int32s]:
    """Returns the offsets and the values of the column that `_write_lists` wrote."""
    if not len(table):
        return np.zeros(1, np.int64), np.zeros(0, np.int32)
    lists = table["rows"].chunk(0)
    return lists.offsets.to_numpy(), lists.values.to_numpy()


def _map(path: Path) -> pa.Table:
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(f"{path} cannot be read ({error})", remedy="publish the bundle again") from error
