"""A Parquet or CSV file, by its ending, that is written batch by batch and appears when it is complete.

Knows nothing of what the rows mean.
"""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

ENDINGS = (".parquet", ".csv")


def write_table_file(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes batches of a schema and returns the number of rows; replaces an existing file at the end, or not at all.

    Args:
        path: Ends with .parquet or .csv; its folder is made.
        schema: Of every batch.
        batches: Held one at a time.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.parent / f".{path.name}.tmp-{uuid.uuid4().hex[:12]}"
    num_rows = 0
    try:
        with _open_writer(staging, path.suffix, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                num_rows += batch.num_rows
        with staging.open("rb") as file:
            os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
    return num_rows


def _open_writer(path: Path, ending: str, schema: pa.Schema) -> pq.ParquetWriter | pacsv.CSVWriter:
    if ending == ".parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    assert ending == ".csv", ending
    return pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed"))
