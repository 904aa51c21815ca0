"""A model that is arrays and a header as two files: `model.safetensors` and `model.json`. No pickle."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ray_recsys.errors import IntegrityError

ARRAYS = "model.safetensors"
HEADER = "model.json"


def save_arrays(directory: Path, header: Mapping[str, object], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes both files into an existing directory."""
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / ARRAYS)
    (directory / HEADER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf8")


def load_arrays(directory: Path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Returns the header and the arrays of a directory.

    Raises:
        IntegrityError: A file is missing or damaged; names it.
    """
    try:
        header = json.loads((directory / HEADER).read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{directory / HEADER} cannot be read: {error}") from error
    try:
        return header, load_file(directory / ARRAYS)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"{directory / ARRAYS} cannot be read: {error}") from error
