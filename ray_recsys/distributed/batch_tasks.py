"""A task's share of `recommend`: files of recommendations.

Does not know where the files go in the end.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommendation_table import RecommendationTable
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.vocabulary import Lookup


@dataclass(frozen=True)
class RecommendTask:
    """Opens the bundle once, then writes every `num_tasks`-th file; the same files if it runs again."""

    USERS_PER_FILE: ClassVar[int] = 2048

    bundle: Path
    output: Path
    users: "ray.ObjectRef[pa.Array] | None"
    """Ids; None: all users of the bundle."""
    num_users: int
    k: int
    num_candidates: int
    num_tasks: int

    def __call__(self, number: int) -> tuple[Counter[str], int]:
        """Returns the users by source, and the number of rows written."""
        # Queries are small: a thread a task is faster than all tasks with the threads of all cores.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        bundle = Bundle.open(self.bundle)
        table = RecommendationTable(Recommender(bundle), k=self.k, num_candidates=self.num_candidates)
        user_ids = None if self.users is None else ray.get(self.users)
        sources: Counter[str] = Counter()
        num_rows = 0
        for file in range(number, -(-self.num_users // self.USERS_PER_FILE), self.num_tasks):
            start = file * self.USERS_PER_FILE
            ids, users = _users(bundle, user_ids, start, min(start + self.USERS_PER_FILE, self.num_users))
            made = table.make(ids, users)
            pq.write_table(made, self.output / f"part-{file:05d}.parquet", compression="zstd")
            sources.update({"two-stage": int(users.is_known.sum()), "popular": users.num_unknown})
            num_rows += made.num_rows
        return sources, num_rows


def _users(bundle: Bundle, user_ids: pa.Array | None, start: int, stop: int) -> tuple[pa.Array, Lookup]:
    if user_ids is not None:
        ids = user_ids[start:stop]
        return ids, bundle.users.lookup(ids)
    user_idx = np.arange(start, stop)
    return bundle.users.ids_of(user_idx), Lookup(user_idx, np.ones(stop - start, np.bool_))
