"""Arrays with a row per user, split into files by the workers that have the rows, and read for any other split.

users-000000000000.safetensors, and so on: the number is the user that has the file's row 0. Files have the format of
safetensors; they are written array by array, since its own writer copies all arrays first.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from ray_recsys.errors import IntegrityError

_PREFIX, _SUFFIX = "users-", ".safetensors"
_TYPES = {"float32": "F32", "int32": "I32", "int64": "I64"}


def write_user_part(directory: Path, arrays: Mapping[str, npt.NDArray[Any]], first_user: int) -> None:
    """Writes the rows of users `first_user..` into an existing directory; nothing, if there are none."""
    num_users = len(next(iter(arrays.values())))
    if not num_users:
        return
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / f"{_PREFIX}{first_user:012d}{_SUFFIX}").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def read_user_rows(directory: Path, users: range | None = None) -> dict[str, npt.NDArray[Any]]:
    """Returns the rows of some users, or of all, by the names of their arrays; nothing without such files.

    Raises:
        IntegrityError: A file is damaged, or there are not the rows of all these users.
    """
    parts = sorted(directory.glob(f"{_PREFIX}*{_SUFFIX}"))
    firsts = [int(path.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)) for path in parts]
    if not parts:
        return {}
    try:
        if users is None:
            users = range(firsts[-1] + _num_rows(parts[-1]))
        rows: dict[str, npt.NDArray[Any]] = {}
        found = sum(_read_part(path, first, users, rows) for path, first in zip(parts, firsts, strict=True))
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{directory}: rows of users cannot be read: {error}") from error
    if found != len(users):
        raise IntegrityError(f"{directory} has the rows of {found} of users {users.start} to {users.stop}")
    return rows


def _num_rows(path: Path) -> int:
    with safe_open(path, framework="numpy") as file:
        shape: list[int] = file.get_slice(next(iter(file.keys()))).get_shape()
        return shape[0]


def _read_part(path: Path, first: int, users: range, rows: dict[str, npt.NDArray[Any]]) -> int:
    """Copies the rows that a file has of the users; returns how many."""
    with safe_open(path, framework="numpy") as file:
        num_found = 0
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            shape = part.get_shape()
            begin, end = max(first, users.start), min(first + shape[0], users.stop)
            num_found = max(0, end - begin)
            if name not in rows:
                dtype = {short: long for long, short in _TYPES.items()}[part.get_dtype()]
                rows[name] = np.zeros((len(users), *shape[1:]), dtype)
            if num_found and rows[name].size:
                rows[name][begin - users.start : end - users.start] = part[begin - first : end - first]
    return num_found
