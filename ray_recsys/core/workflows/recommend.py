"""Recommendations for all users of a bundle, or for those of a file, as Parquet files: the same lists as over HTTP."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import ranks_in_rows
from ray_recsys.core.artifact_writer import table_folder
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.table_files import IdFile
from ray_recsys.core.vocabulary import Lookup, are_integers, normal_ids
from ray_recsys.errors import DataError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.files import written_file
from ray_recsys.storage.location import Location, LocationLike

USERS_PER_FILE = 2048


class RecommendResult(BaseModel):
    """Summary of the output of `recommend`."""

    model_config = ConfigDict(frozen=True)

    output: Location
    bundle: str
    """Version."""
    num_users: int
    num_recommendations: int
    sources: dict[str, int]
    """Users by source, as in the API: two-stage, or popular for unknown users."""
    num_unknown_users: int
    seconds: float
    users_per_s: float


def recommend(
    bundle: LocationLike,
    output: LocationLike,
    executor: Executor,
    *,
    num_candidates: int,
    users: LocationLike | None = None,
    k: int = 10,
    report: Reporter = silent,
) -> RecommendResult:
    """Writes the best k items of users, the same as over HTTP, to Parquet files in a new directory.

    Rows are user_id, rank, item_id, score, title (if the bundle has titles), source; users in order of the file given,
    else of their index; all of a user's rows in one file.

    Args:
        bundle: Directory of the bundle.
        output: Directory to make; it appears when it is complete. In an object store, it then has a file `_SUCCESS`.
        executor: Runs a task per file.
        num_candidates: Candidates that recall passes to rerank.
        users: File with a user_id column, or a .txt file of one id per line; repeated ids count once. An unknown
            user gets popular items. None: all users of the bundle.
        k: Items per user; fewer where the user has seen almost everything.
        report: Progress.

    Raises:
        ArtifactError: The bundle cannot be used, or the output exists.
        DataError: The file of users cannot be used.
    """
    start_s = time.monotonic()
    opened = Bundle.open(bundle)
    user_ids = None if users is None else _read_users(users, is_integer=opened.users.is_integer)
    num_users = opened.manifest.num_users if user_ids is None else len(user_ids)
    sources: Counter[str] = Counter()
    num_rows = 0
    with table_folder(output) as folder:
        task = _WriteFile(
            bundle=Location.of(bundle),
            version=opened.version,
            output=folder,
            users=None if user_ids is None else executor.share(user_ids),
            num_users=num_users,
            k=k,
            num_candidates=num_candidates,
        )
        for counts, rows in executor.map(task, -(-num_users // USERS_PER_FILE), stage=f"recommending into {output}"):
            sources += counts
            num_rows += rows
            report(f"{sources.total():,} of {num_users:,} users")
    seconds = time.monotonic() - start_s
    return RecommendResult(
        output=Location.of(output),
        bundle=opened.version,
        num_users=num_users,
        num_recommendations=num_rows,
        sources=dict(sources),
        num_unknown_users=sources["popular"],
        seconds=round(seconds, 3),
        users_per_s=round(num_users / seconds, 1),
    )


def _read_users(path: LocationLike, *, is_integer: bool) -> pa.Array:
    """Returns the distinct ids of a file: integers if the bundle's are and all of these are, else strings."""
    given = IdFile.open(path, ("user_id",)).read(("user_id",))["user_id"]
    try:
        column = normal_ids(given).unique()
    except DataError as error:
        raise DataError(f"{path}, column user_id: {error.message}", remedy=error.remedy) from None
    if not is_integer:
        return column.cast(pa.large_string())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) or are_integers(column) else column


@dataclass(frozen=True)
class _WriteFile:
    """Writes one file; the same bytes if it runs again."""

    bundle: Location
    version: str
    output: Location
    users: Shared[pa.Array] | None
    """Ids; None: all users of the bundle."""
    num_users: int
    k: int
    num_candidates: int

    def __call__(self, file: int) -> tuple[Counter[str], int]:
        """Returns the users by source, and the number of rows written."""
        # Queries are small: a thread per task is faster than all tasks with the threads of all cores.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        recommender = _open_recommender(self.bundle, self.version)
        table = RecommendationTable(recommender, k=self.k, num_candidates=self.num_candidates)
        start = file * USERS_PER_FILE
        ids, users = self._users(recommender.bundle, start, min(start + USERS_PER_FILE, self.num_users))
        made = table.make(ids, users)
        with written_file(self.output / f"part-{file:05d}.parquet", durable=False) as path:
            pq.write_table(made, path, compression="zstd")
        return Counter({"two-stage": int(users.is_known.sum()), "popular": users.num_unknown}), made.num_rows

    def _users(self, bundle: Bundle, start: int, stop: int) -> tuple[pa.Array, Lookup]:
        if self.users is not None:
            ids = self.users.get()[start:stop]
            return ids, bundle.users.lookup(ids)
        user_idx = np.arange(start, stop)
        return bundle.users.ids_of(user_idx), Lookup(user_idx, np.ones(stop - start, np.bool_))


@lru_cache(maxsize=1)
def _open_recommender(path: Location, version: str) -> Recommender:
    """A process keeps one bundle open between files."""
    return Recommender(open_version(path, version))


def open_version(path: Location, version: str) -> Bundle:
    """Returns the bundle that the driver opened at a path."""
    bundle = Bundle.open(path)
    assert bundle.version == version, (bundle.version, version)
    return bundle


class RecommendationTable:
    """Makes tables with columns user_id, rank (from 1), item_id, score, title (if the bundle has titles), source."""

    def __init__(self, recommender: Recommender, *, k: int, num_candidates: int) -> None:
        self._recommender = recommender
        self._items = recommender.bundle.catalogue.table
        self._k, self._num_candidates = k, num_candidates
        self._popular = recommender.recommend(Query(k=k, num_candidates=num_candidates))

    def make(self, user_ids: pa.Array, users: Lookup) -> pa.Table:
        """Returns the best k items of each user, users in the order given; an unknown user gets popular items.

        Args:
            user_ids: Ids of the users, as they are to be written.
            users: Their indices.
        """
        known = zip(users.idx.tolist(), users.is_known.tolist(), strict=True)
        answers = [
            self._recommender.recommend(Query(idx, k=self._k, num_candidates=self._num_candidates))
            if is_known
            else self._popular
            for idx, is_known in known
        ]
        lengths = np.array([len(answer.item_idx) for answer in answers], np.int64)
        rows = np.repeat(np.arange(len(answers)), lengths)
        items = pa.array(_concatenate([answer.item_idx for answer in answers], np.int32))
        columns = {
            "user_id": user_ids.take(pa.array(rows)),
            "rank": pa.array(ranks_in_rows(lengths) + 1, pa.int32()),
            "item_id": self._items["item_id"].take(items),
            "score": pa.array(_concatenate([answer.scores for answer in answers], np.float32)),
        }
        if "title" in self._items.column_names:
            columns["title"] = self._items["title"].take(items)
        sources = pa.array([answer.source for answer in answers], pa.string())
        return pa.table({**columns, "source": sources.take(pa.array(rows))})


def _concatenate(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
