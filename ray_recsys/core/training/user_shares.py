"""Shares of workers that end between users: a user's positives, and rows of tables, belong to one worker."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Self

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.histories import interactions_from_table
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.data_parallel import all_gather, is_group
from ray_recsys.core.training.learner import is_sparse


@dataclass(frozen=True, slots=True)
class UserShares:
    """Worker w has users `users[w]:users[w + 1]` and their positives, `positives[w]:positives[w + 1]` of the epoch."""

    positives: tuple[int, ...]
    users: tuple[int, ...]

    @classmethod
    def of(cls, prepared: PreparedSet, *, rank: int, world_size: int) -> Self:
        """Returns the shares of all workers, about equal in positives.

        In a process group each worker locates the start of its own share in one partition, and every worker must call
        this; otherwise one process looks for all.
        """
        if is_group():
            begins = all_gather(_begin(prepared, rank, world_size))
        else:
            begins = [_begin(prepared, worker, world_size) for worker in range(world_size)]
        manifest = prepared.manifest
        num_training = sum(info.num_training for info in manifest.partitions)
        cuts = [*begins, (num_training, manifest.num_users)]
        return cls(tuple(cut[0] for cut in cuts), tuple(cut[1] for cut in cuts))

    def users_of(self, rank: int) -> range:
        """Returns the users of a worker."""
        return range(self.users[rank], self.users[rank + 1])


def split_users(
    prepared: PreparedSet, recipe: Recipe, *, rank: int, world_size: int
) -> tuple[tuple[int, ...] | None, range | None]:
    """Returns the bounds of the workers' positives and the users of one, if the recipe gives workers their own users.

    None and None where every worker has the rows of all users. Every worker of a process group must call it.
    """
    if not is_sparse(recipe.train, splits_users=MODELS[recipe.model.name].splits_users):
        return None, None
    shares = UserShares.of(prepared, rank=rank, world_size=world_size)
    return shares.positives, shares.users_of(rank)


def _begin(prepared: PreparedSet, rank: int, world_size: int) -> tuple[int, int]:
    """Returns a worker's first positive and first user: the first user at or after an equal share's begin."""
    if rank == 0:
        return 0, 0
    partitions = prepared.manifest.partitions
    ends = list(accumulate(info.num_training for info in partitions))
    target = ends[-1] * rank // world_size if ends else 0
    partition = int(np.searchsorted(ends, target, side="left"))
    if partition == len(ends):
        return 0, 0
    first = ends[partition] - partitions[partition].num_training
    table = prepared.read_columns(partition, ["item_idx"])
    offsets = interactions_from_table(table, "").offsets
    user = int(np.searchsorted(offsets, target - first, side="left"))
    return first + int(offsets[user]), partitions[partition].first_user_idx + user
