"""A model as two files: `model.safetensors` (weights) and `model.json` (what rebuilds it). No pickle.

Digests are the business of the artefact that holds them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_recsys.config import NeuMFRecipe
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.errors import IntegrityError

WEIGHTS = "model.safetensors"
SHAPE = "model.json"


class _ModelShape(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    num_users: PositiveInt
    num_items: PositiveInt
    recipe: NeuMFRecipe


def save_model(model: NeuMF, directory: Path, *, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes a model's two files into an existing directory; `weights` are written in place of the model's own."""
    shape = _ModelShape(num_users=model.num_users, num_items=model.num_items, recipe=model.recipe)
    tensors = model.state_dict() if weights is None else weights
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, directory / WEIGHTS)
    (directory / SHAPE).write_text(json.dumps(shape.model_dump(mode="json"), indent=2) + "\n", encoding="utf8")


def load_model(directory: Path) -> NeuMF:
    """Returns the model of a directory, on the CPU and in evaluation mode.

    Raises:
        IntegrityError: A file is missing or damaged, or the two do not belong together; names the file.
    """
    try:
        shape = _ModelShape.model_validate_json((directory / SHAPE).read_text(encoding="utf8"))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{directory / SHAPE} cannot be read: {error}") from error
    with torch.device("meta"):
        model = NeuMF(shape.num_users, shape.num_items, shape.recipe)
    try:
        model.load_state_dict(load_file(directory / WEIGHTS), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{directory / WEIGHTS} does not hold the weights of {SHAPE}: {error}") from error
    return model.eval()
