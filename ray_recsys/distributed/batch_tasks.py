"""A task of `recommend`: one file of recommendations.

Does not know where the file goes in the end.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
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
    """Writes a file; the same if it runs again."""

    USERS_PER_FILE: ClassVar[int] = 2048

    bundle: Path
    version: str
    output: Path
    users: "ray.ObjectRef[pa.Array] | None"
    """Ids; None: all users of the bundle."""
    num_users: int
    k: int
    num_candidates: int

    def __call__(self, file: int) -> tuple[Counter[str], int]:
        """Returns the users by source, and the number of rows written."""
        # Queries are small: a thread a task is faster than all tasks with the threads of all cores.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        recommender = _open_recommender(self.bundle, self.version)
        table = RecommendationTable(recommender, k=self.k, num_candidates=self.num_candidates)
        user_ids = None if self.users is None else ray.get(self.users)
        start = file * self.USERS_PER_FILE
        stop = min(start + self.USERS_PER_FILE, self.num_users)
        ids, users = _users(recommender.bundle, user_ids, start, stop)
        made = table.make(ids, users)
        pq.write_table(made, self.output / f"part-{file:05d}.parquet", compression="zstd")
        return Counter({"two-stage": int(users.is_known.sum()), "popular": users.num_unknown}), made.num_rows


@lru_cache(maxsize=1)
def _open_recommender(path: Path, version: str) -> Recommender:
    """A worker process keeps one bundle open between files; `version` tells bundles at one path apart."""
    return Recommender(open_version(path, version))


def open_version(path: Path, version: str) -> Bundle:
    """Returns the bundle that the driver opened at a path."""
    bundle = Bundle.open(path)
    assert bundle.version == version, (bundle.version, version)
    return bundle


def _users(bundle: Bundle, user_ids: pa.Array | None, start: int, stop: int) -> tuple[pa.Array, Lookup]:
    if user_ids is not None:
        ids = user_ids[start:stop]
        return ids, bundle.users.lookup(ids)
    user_idx = np.arange(start, stop)
    return bundle.users.ids_of(user_idx), Lookup(user_idx, np.ones(stop - start, np.bool_))
