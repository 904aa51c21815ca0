"""Files that appear complete or not at all, and the Arrow and numpy files that stages keep on disk."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a path beside `path` to write to; renames it to `path` on success, removes it on any error.

    Args:
        path: The final name; an existing file is replaced, and its folder must exist.
        durable: Whether the file must survive a power failure from then on. False for scratch files and for files of a
            directory that is synchronised as a whole.
    """
    unfinished = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
        if durable:
            sync_directory(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: a rename is, once the directory that holds the name is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_arrow(table: pa.Table, path: Path) -> None:
    """Writes a table as an uncompressed Arrow file that `read_arrow` can map."""
    with (
        atomic_file(path, durable=False) as unfinished,
        pa.OSFile(str(unfinished), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)


def read_arrow(path: Path) -> pa.Table:
    """Returns the table of an Arrow file, memory-mapped: only the pages that are used are read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def write_array(values: npt.NDArray[Any], path: Path) -> None:
    """Writes a numpy array."""
    with atomic_file(path, durable=False) as unfinished, unfinished.open("wb") as file:
        np.save(file, values, allow_pickle=False)
