"""The items of a bundle: id, popularity, title and category of each index, and ids back to indices."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
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
COLUMNS = ("item_id", "count", "title", "category")


@dataclass(frozen=True, slots=True)
class Item:
    """What is shown of an item; title and category only where the side file has them."""

    item_id: ExternalId
    title: str | None = None
    category: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """Items by index; index 0 is the most popular."""

    table: pa.Table
    vocabulary: Vocabulary

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps both files into memory.

        Raises:
            IntegrityError: They do not belong together.
        """
        vocabulary = Vocabulary.open(directory / VOCABULARY)
        try:
            with pa.memory_map(str(directory / TABLE)) as source:
                table = pa.ipc.open_file(source).read_all()
        except pa.ArrowInvalid as error:
            raise IntegrityError(f"{directory / TABLE} cannot be read ({error})") from error
        if table.num_rows != len(vocabulary):
            raise IntegrityError(f"{directory / TABLE} has {table.num_rows} items, {VOCABULARY} {len(vocabulary)}")
        return cls(table, vocabulary)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def counts(self) -> Int64s:
        """Training interactions of each item, int64[I], descending."""
        counts: Int64s = self.table["count"].to_numpy()
        return counts

    def describe(self, item_idx: Iterable[int]) -> list[Item]:
        """Returns what is shown of each item, in the order given."""
        places = [int(place) for place in item_idx]
        ids, titles, categories = (self._values(name, places) for name in ("item_id", "title", "category"))
        return [Item(*columns) for columns in zip(ids, titles, categories, strict=True)]

    def _values(self, column: str, places: list[int]) -> list[Any]:
        if column not in self.table.column_names:
            return [None] * len(places)
        values = self.table[column].chunk(0)  # written as one
        return [values[place].as_py() for place in places]

    @cached_property
    def _titles(self) -> TitleIndex:
        return TitleIndex(self.table["title" if "title" in self.table.column_names else "item_id"].chunk(0))

    @cached_property
    def _categories(self) -> dict[str, Int32s]:
        """Items of each category; one of several that `|` separates counts as a category too."""
        if "category" not in self.table.column_names:
            return {}
        column = self.table["category"].chunk(0)
        parts = pc.split_pattern(column, "|")
        has_parts = pc.match_substring(column, "|").fill_null(False)
        whole = np.flatnonzero(has_parts.to_numpy(zero_copy_only=False))
        rows = np.concatenate([pc.list_parent_indices(parts).to_numpy(), whole])
        names = pa.chunked_array([pc.list_flatten(parts), column.filter(has_parts)]).combine_chunks()
        encoded = names.dictionary_encode()
        codes = encoded.indices.to_numpy()
        order = np.lexsort((rows, codes))
        groups = np.split(
            rows[order].astype(np.int32), np.searchsorted(codes[order], np.arange(1, len(encoded.dictionary)))
        )
        return dict(zip(encoded.dictionary.to_pylist(), groups, strict=False))

    def in_category(self, category: str) -> Int32s:
        """Returns the items of a category, or of one of the parts that `|` separates, most popular first."""
        return self._categories.get(category, np.zeros(0, np.int32))

    def search_titles(self, text: str, limit: int) -> Int32s:
        """Returns the most popular items, at most `limit`, whose title (or id, without titles) contains a text.

        Upper and lower case are the same; an empty text finds every item.
        """
        return self._titles.search(text, limit)

    def warm(self) -> None:
        """Builds the indices of titles and categories, which the first search would wait for."""
        _ = self._titles, self._categories


def write_catalogue(directory: Path, items: pa.Table) -> None:
    """Writes both files from the item table of a prepared set, whose row i is the item with index i."""
    columns = {name: items[name] for name in COLUMNS if name in items.column_names}
    columns["item_id"] = normal_ids(columns["item_id"])
    for name in ("title", "category"):
        if name in columns:
            columns[name] = columns[name].cast(pa.large_string())
    table = pa.table(columns).combine_chunks()
    with pa.ipc.new_file(str(directory / TABLE), table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))
    write_vocabulary(directory / VOCABULARY, columns["item_id"])
