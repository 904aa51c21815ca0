"""Warm start: training starts from a bundle's weights for the users and items that both have.

Rows of known users and items are copied by their ids; all other parameters are copied too. A new user's row is a mean
over the items of the history: of each item, the mean row of the known users who have it. So a fold-in is two sparse
products, the same for every model and table. A new item's row is made from its users likewise. Without any known item
(or user), it is the mean of the bundle's rows.

Shapes: N users or items of the new data, W columns of all tables side by side.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict
from scipy.sparse import csr_array

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Bools, Float32s, Float64s
from ray_recsys.core.artifact import read_manifest
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import bundle
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.catalogue import VOCABULARY
from ray_recsys.core.vocabulary import Vocabulary
from ray_recsys.errors import ArtifactError, InputError, IntegrityError
from ray_recsys.storage.cache import fetch
from ray_recsys.storage.location import Location, LocationLike

_FREE_KEYS = ("init_std", "dropout", "gmf_loss_weight", "pretrain")
"""Keys of [model] that may differ: they change neither a parameter's shape nor its meaning."""


class WarmStart(BaseModel):
    """The bundle that a run starts from."""

    model_config = ConfigDict(frozen=True)

    bundle: Location
    version: str
    refit: bool
    """Whether its model was trained on held-out interactions: validation is then optimistic."""

    @classmethod
    def open(cls, path: LocationLike, recipe: Recipe) -> Self:
        """Checks a bundle, every byte of it, and whether the recipe's model can start from its model.

        Raises:
            ArtifactError: There is no bundle, it is damaged, or its model is another one or of other widths.
            InputError: The recipe's model is not trained by gradient descent.
        """
        if MODELS[recipe.model.name].build is None:
            names = ", ".join(name for name, spec in MODELS.items() if spec.build is not None)
            message = f"model.name = {recipe.model.name!r} is fitted without epochs and cannot start from a bundle"
            raise InputError(message, remedy=f"train without --warm-start; it is for {names}")
        opened = Bundle.open(path)
        if (num_seeds := opened.manifest.recipe.train.num_seeds) > 1:
            raise ArtifactError(
                f"{opened.path} is the mean of {num_seeds} models: training cannot start from it",
                remedy="train without --warm-start, or from a bundle of train.num_seeds = 1",
            )
        before, now = opened.manifest.recipe.model.model_dump(), recipe.model.model_dump()
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key) and key not in _FREE_KEYS]
        if keys:
            different = ", ".join(f"model.{key} = {before.get(key)}, the recipe {now.get(key)}" for key in keys)
            raise ArtifactError(
                f"{path} cannot start this model: it has {different}",
                remedy="train with the bundle's values, or without --warm-start",
            )
        return cls(bundle=Location.of(path), version=opened.version, refit=opened.manifest.refit)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Overlap of a bundle with the new data."""

    known_users: int
    num_users: int
    known_items: int
    num_items: int

    def __str__(self) -> str:
        return (
            f"warm start: {self.known_users:,} of {self.num_users:,} users and {self.known_items:,} of "
            f"{self.num_items:,} items are known"
        )


def warm_start(
    model: GradientModel, source: LocationLike, prepared: PreparedSet, own_users: range | None = None
) -> Coverage:
    """Replaces a model's initial parameters by those of a bundle; all workers get the same values.

    Args:
        model: Just built, on any device.
        source: The bundle, which `WarmStart.open` has checked.
        prepared: The set that is trained on; a partition at a time is read.
        own_users: The users whose rows the model has; None: all.

    Raises:
        ArtifactError: The bundle has none of the users and items.
        IntegrityError: The bundle's files are missing, damaged or of another model.
    """
    location = Location.of(source)
    files = read_manifest(location, kind=bundle.KIND, schema_version=bundle.SCHEMA_VERSION)["files"]
    copy = fetch(location, files)
    parameters, state = model.parameters_of(copy.path / bundle.MODEL), model.state_dict()
    user_tables, item_tables = ([n for n in names if n in state] for names in (model.user_tables, model.item_tables))
    _check_shapes(parameters, state, {*user_tables, *item_tables}, source)
    partitions = range(len(prepared.manifest.partitions))
    user_ids = [prepared.read_user_ids(partition) for partition in partitions]
    users = _Side.of(user_ids, Vocabulary.open(copy.path / bundle.USERS), [parameters[name] for name in user_tables])
    item_ids = [prepared.read_items()["item_id"]]
    items = _Side.of(item_ids, Vocabulary.open(copy.path / VOCABULARY), [parameters[name] for name in item_tables])
    if not (users.is_known.any() or items.is_known.any()):
        raise ArtifactError(f"{source} has none of the users and items of {prepared.location}")
    if not (users.is_known.all() and items.is_known.all()):
        _fill_new_rows(users, items, prepared)
    found = {name: values for name, values in parameters.items() if name not in (*user_tables, *item_tables)}
    own = slice(None) if own_users is None else slice(own_users.start, own_users.stop)
    found |= {name: rows[own] for name, rows in users.tables(user_tables, state).items()}
    found |= items.tables(item_tables, state)
    with torch.no_grad():
        for name, parameter in state.items():
            parameter.copy_(torch.from_numpy(found[name].copy()))
    return Coverage(int(users.is_known.sum()), len(users.is_known), int(items.is_known.sum()), len(items.is_known))


def _check_shapes(
    parameters: Mapping[str, Float32s], state: Mapping[str, torch.Tensor], tables: Collection[str], source: LocationLike
) -> None:
    """Checks that each parameter is there: a table of the same width, any other of the same shape."""
    for name, parameter in state.items():
        first = 1 if name in tables else 0
        found = parameters[name].shape[first:] if name in parameters else None
        if found != parameter.shape[first:]:
            raise IntegrityError(
                f"{source} has {name} of shape {found}, the recipe's model {tuple(parameter.shape[first:])}",
                remedy="train without --warm-start",
            )


@dataclass(frozen=True, slots=True)
class _Side:
    """The users or the items of the new data, with the rows that the bundle has of them."""

    is_known: Bools
    rows: Float32s
    """All tables side by side, float32[N, W]; 0 where unknown."""
    mean: Float32s
    """Of the bundle's rows, float32[W]."""

    @classmethod
    def of(cls, ids: Iterable[pa.ChunkedArray], vocabulary: Vocabulary, tables: Sequence[Float32s]) -> Self:
        """Looks the new data's ids up, in the order of their indices."""
        lookups = [vocabulary.lookup(part) for part in ids]
        is_known = np.concatenate([lookup.is_known for lookup in lookups])
        known = np.concatenate([lookup.known for lookup in lookups])
        flat = [table.reshape(len(table), math.prod(table.shape[1:])) for table in tables]
        mean = np.concatenate([table.mean(axis=0) for table in flat])
        rows = np.zeros((len(is_known), len(mean)), np.float32)
        rows[is_known] = np.concatenate([table[known] for table in flat], axis=1)
        return cls(is_known, rows, mean)

    def give_new_ones(self, rows: Float32s, is_meant: Bools, part: slice = slice(None)) -> None:
        """Sets the new ones of a part to rows [n, W] where they are meant, [n], and to the mean elsewhere."""
        meant = np.where(is_meant[:, None], rows, self.mean)
        self.rows[part] = np.where(self.is_known[part, None], self.rows[part], meant)

    def tables(self, names: Sequence[str], state: Mapping[str, torch.Tensor]) -> dict[str, Float32s]:
        """Returns the rows as the tables that they were."""
        shapes = [state[name].shape for name in names]
        ends = np.cumsum([math.prod(shape[1:]) for shape in shapes])
        parts = np.split(self.rows, ends[:-1], axis=1)
        return {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}


def _fill_new_rows(users: _Side, items: _Side, prepared: PreparedSet) -> None:
    """Gives new users and items rows; see the module's docstring."""
    num_items, num_partitions = len(items.is_known), len(prepared.manifest.partitions)
    of_users, num_of_users = np.zeros((num_items, users.rows.shape[1]), np.float32), np.zeros(num_items)
    of_items, num_of_items = np.zeros_like(items.rows), np.zeros(num_items)
    for partition in range(num_partitions):
        part, pairs = _pairs(prepared, partition, num_items)
        of_users += pairs.T @ users.rows[part]
        num_of_users += pairs.T @ users.is_known[part].astype(float)
        num_known = pairs @ items.is_known.astype(float)
        of_items += pairs.T @ _means(pairs @ items.rows, num_known)
        num_of_items += pairs.T @ (num_known > 0).astype(float)
    means, has_users = _means(of_users, num_of_users), (num_of_users > 0).astype(float)
    items.give_new_ones(_means(of_items, num_of_items), num_of_items > 0)
    for partition in range(num_partitions):
        part, pairs = _pairs(prepared, partition, num_items)
        num_counted = pairs @ has_users
        users.give_new_ones(_means(pairs @ means, num_counted), num_counted > 0, part)


def _means(sums: Float32s, counts: Float64s) -> Float32s:
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)


def _pairs(prepared: PreparedSet, partition: int, num_items: int) -> tuple[slice, csr_array]:
    """Returns which users a partition has, and its training interactions as a sparse matrix of ones, [n, I]."""
    histories = prepared.read_partition(partition)
    training, first = histories.training, histories.first_user_idx
    ones = np.ones(len(training.item_idx), np.float32)
    pairs = csr_array((ones, training.item_idx, training.offsets), shape=(training.num_users, num_items))
    return slice(first, first + training.num_users), pairs
