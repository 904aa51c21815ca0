"""The Arrow and numpy files that stages keep on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.storage.files import atomic_file


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
