"""The side file of items: title and category by item id, for every item of the vocabulary.

Knows nothing of interactions. The file is read as a whole: it has one row per item.
"""

import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.config import ItemsRecipe
from ray_recsys.core.preparing.log_files import LogFile, list_log_files
from ray_recsys.core.preparing.log_reader import open_parquet
from ray_recsys.core.preparing.log_text import iter_line_blocks, parse_block, text_layout
from ray_recsys.errors import DataError

MOVIELENS_COLUMNS = ("item_id", "title", "category")


def read_side_items(uri: str, recipe: ItemsRecipe) -> pa.Table:
    """Returns item_id (text), title and category (text, where the recipe names a column for it).

    Raises:
        DataError: A missing file or column, a row that is malformed or has no id, or an id met twice.
    """
    wanted = {"item_id": recipe.id_column, "title": recipe.title_column, "category": recipe.category_column}
    columns = {name: column for name, column in wanted.items() if column is not None}
    parts = [_read_file(file, recipe, list(columns.values())) for file in list_log_files([uri], recipe.format)]
    table = pa.concat_tables([_as_text(part, columns) for part in parts]).combine_chunks()
    ids = table["item_id"]
    if ids.null_count:
        raise DataError(f"{uri}: {ids.null_count} rows have no {recipe.id_column!r}; every item needs its id")
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        shown = ", ".join(map(repr, repeated[:5].to_pylist()))
        raise DataError(f"{uri}: {len(repeated)} ids are there more than once, e.g. {shown}; keep one row per item")
    return table


def join_side_items(item_ids: pa.Array, side: pa.Table) -> tuple[dict[str, pa.Array], int]:
    """Returns (title and category in order of the items, null where the side file lacks one; items not in it)."""
    places = pc.index_in(item_ids.cast(pa.string()), value_set=side["item_id"].combine_chunks())
    names = [name for name in side.column_names if name != "item_id"]
    return {name: side[name].combine_chunks().take(places) for name in names}, places.null_count


def _read_file(file: LogFile, recipe: ItemsRecipe, columns: list[str]) -> pa.Table:
    if file.format == "parquet":
        with open_parquet(file) as parquet:
            _check_columns(file, columns, parquet.schema_arrow.names)
            return parquet.read(columns=list(dict.fromkeys(columns)))
    layout = text_layout(file, recipe, MOVIELENS_COLUMNS)
    _check_columns(file, columns, layout.column_names)
    tables = []
    for number, data in enumerate(iter_line_blocks(file, 0, None)):
        block = parse_block(data, layout, list(dict.fromkeys(columns)), is_first=number == 0)
        if block.malformed:
            raise DataError(f"{file.uri}: {len(block.malformed)} malformed rows, e.g. {block.malformed[0][:200]!r}")
        tables.append(block.table)
    if not tables:
        raise DataError(f"{file.uri} has no rows; it needs one per item")
    return pa.concat_tables(tables, promote_options="permissive")


def _check_columns(file: LogFile, columns: list[str], found: tuple[str, ...] | list[str]) -> None:
    for name in columns:
        if name not in found:
            raise DataError(
                f"{file.uri} has no column {name!r}; columns found: {', '.join(found)}; name yours in the recipe's "
                "[items] section ('none' for no title or category)"
            )


def _as_text(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    return pa.table({name: _text(table[column]) for name, column in columns.items()})


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) and pc.all(pc.equal(column, pc.floor(column))).as_py() is not False:
        column = column.cast(pa.int64())
    try:
        return column.cast(pa.string())
    except pa.ArrowNotImplementedError:
        raise DataError(f"a column of the items file has type {column.type}, which is no text") from None
