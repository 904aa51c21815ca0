"""A model as two files: `model.json` (its name and constructor arguments) and `model.safetensors` (arrays). No pickle.

Models trained by several workers keep their arrays with a row per user in separate files, `user_parts`.

Digests are kept by the artefact that holds the files.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import save_file
from safetensors.torch import load_file

from ray_recsys.core.models.user_parts import read_user_rows, write_user_part
from ray_recsys.errors import IntegrityError

HEADER = "model.json"
ARRAYS = "model.safetensors"

Header = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]


def save_model_files(directory: Path, header: Header, arrays: Arrays) -> None:
    """Writes both files into an existing directory; the header is JSON-ready and has a `name`."""
    assert "name" in header
    save_file({name: np.asarray(values, order="C") for name, values in arrays.items()}, directory / ARRAYS)
    (directory / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf8")


def save_model_part(
    directory: Path, header: Header, arrays: Arrays, *, user_arrays: Collection[str], users: range, num_users: int
) -> None:
    """Writes a worker's part of the files of a model whose rows of users are split among workers.

    Args:
        directory: Shared by all parts in the end.
        header: Of this worker's model.
        arrays: Likewise.
        user_arrays: Names of the arrays with a row per user.
        users: Those of this worker; the worker with user 0 also writes the other arrays.
        num_users: Of all workers.
    """
    of_users = {name: values for name, values in arrays.items() if name in user_arrays}
    write_user_part(directory, of_users, users.start)
    if users.start == 0 and users.stop > 0:
        total = {"num_users": num_users} if "num_users" in header else {}
        shared = {name: values for name, values in arrays.items() if name not in user_arrays}
        save_model_files(directory, {**header, **total}, shared)


def read_model_header(directory: Path) -> dict[str, Any]:
    """Returns the content of `model.json`.

    Raises:
        IntegrityError: It is missing or damaged.
    """
    path = directory / HEADER
    try:
        header = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    if not isinstance(header, dict) or not isinstance(header.get("name"), str):
        raise IntegrityError(f"{path} does not name a model")
    return header


def read_model_arrays(directory: Path) -> dict[str, npt.NDArray[Any]]:
    """Returns the arrays of `model.safetensors`, mapped into memory: processes share the unmodified pages.

    Raises:
        IntegrityError: It is missing or damaged.
    """
    path = directory / ARRAYS
    try:
        tensors = load_file(path)  # torch's, because numpy's are copies
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}") from error
    return {name: tensor.numpy() for name, tensor in tensors.items()} | read_user_rows(directory)
