"""Recommendations for all users of a bundle, or for those of a file, as Parquet files: the same lists as over HTTP."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys import __version__
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.list_rows import USERS_PER_CALL, ListRows
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.table_files import IdFile
from ray_recsys.core.training.lease import leased
from ray_recsys.core.vocabulary import Lookup, are_integers, normal_ids
from ray_recsys.core.workflows.list_parts import ListPart, ListsJob, ListsManifest, PartInfo
from ray_recsys.errors import DataError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import Location, LocationLike

_ROWS_PER_GROUP = 131_072


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
    num_parts: int
    """Files."""
    num_kept_parts: int
    """Files that were there already, and are whole."""
    seconds: float
    users_per_s: float
    """Of the users whose lists were computed."""


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
    """Writes the best k items of users, the same as over HTTP, to a folder of Parquet files; resumes interrupted runs.

    Rows are user_id, rank, item_id, score, title (if the bundle has titles), source; users in order of the file given,
    else of their index; all of a user's rows in one file. Files that are there already are checked and kept.

    Args:
        bundle: Directory of the bundle.
        output: Folder, new or of the same job; complete once it has a file `_SUCCESS` (see `list_parts`).
        executor: Runs a task per file.
        num_candidates: Candidates that recall passes to rerank.
        users: File with a user_id column, or a .txt file of one id per line; repeated ids count once. An unknown
            user gets popular items. None: all users of the bundle.
        k: Items per user; fewer where the user has seen almost everything.
        report: Progress.

    Raises:
        ArtifactError: The bundle cannot be used, or the output has something else or is in use.
        DataError: The file of users cannot be used.
    """
    start_s, folder = time.monotonic(), Location.of(output)
    opened = Bundle.open(bundle)
    user_ids = None if users is None else _read_users(users, is_integer=opened.users.is_integer)
    job = ListsJob(
        package=__version__,
        bundle=opened.version,
        k=k,
        num_candidates=num_candidates,
        users_sha256=None if user_ids is None else _digest_ids(user_ids),
        num_users=opened.manifest.num_users if user_ids is None else len(user_ids),
    )
    job.claim(folder)
    manifest, num_kept = ListsManifest.read(folder), job.num_parts
    if manifest is None:
        task = _WritePart(Location.of(bundle), folder, job, None if user_ids is None else executor.share(user_ids))
        with leased(folder):
            parts, num_kept = _run(task, executor, report)
            manifest = ListsManifest(job=job, parts=parts)
            manifest.write(folder)
    return _result(folder, manifest, num_kept, time.monotonic() - start_s)


def _result(folder: Location, manifest: ListsManifest, num_kept: int, seconds: float) -> RecommendResult:
    job = manifest.job
    return RecommendResult(
        output=folder,
        bundle=job.bundle,
        num_users=job.num_users,
        num_recommendations=manifest.num_rows,
        sources=dict(manifest.sources),
        num_unknown_users=manifest.sources["popular"],
        num_parts=job.num_parts,
        num_kept_parts=num_kept,
        seconds=round(seconds, 3),
        users_per_s=round(max(0, job.num_users - num_kept * job.users_per_part) / seconds, 1),
    )


def _run(task: "_WritePart", executor: Executor, report: Reporter) -> tuple[dict[str, PartInfo], int]:
    """Returns the parts by name, in order, and how many of them were there."""
    job, folder = task.job, task.folder
    found: dict[int, PartInfo] = {}
    num_kept = num_done = 0
    for number, part, is_kept in executor.map(task, job.num_parts, stage=f"recommending into {folder}"):
        found[number] = part
        num_kept += is_kept
        num_done += sum(part.sources.values())
        kept = f", {num_kept:,} of {len(found):,} files kept" if num_kept else ""
        report(f"{num_done:,} of {job.num_users:,} users{kept}")
    return {ListPart(folder, job, number).name: found[number] for number in range(job.num_parts)}, num_kept


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


def _digest_ids(ids: pa.Array) -> str:
    """Returns the sha256 of ids, int64 or large_string, in one chunk."""
    digest = hashlib.sha256(str(ids.type).encode())
    if pa.types.is_integer(ids.type):
        digest.update(ids.to_numpy(zero_copy_only=True))
        return digest.hexdigest()
    _, offsets, data = ids.buffers()
    starts = np.frombuffer(offsets, np.int64)[ids.offset : ids.offset + len(ids) + 1]
    digest.update(starts - starts[0])
    digest.update(memoryview(data)[starts[0] : starts[-1]])
    return digest.hexdigest()


@dataclass(frozen=True)
class _WritePart:
    """Writes one part unless it is there; the same rows if it runs again."""

    bundle: Location
    folder: Location
    job: ListsJob
    user_ids: Shared[pa.Array] | None
    """None: all users of the bundle."""

    def __call__(self, number: int) -> tuple[int, PartInfo, bool]:
        """Returns the number, what is in the part, and whether it was there."""
        part = ListPart(self.folder, self.job, number)
        if (found := part.find()) is not None:
            return number, found, True
        # Queries are small: a thread per task is faster than all tasks with the threads of all cores.
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        rows = _open_rows(self.bundle, self.job)
        sources: Counter[str] = Counter()

        def batches() -> Iterator[pa.RecordBatch]:
            size = max(USERS_PER_CALL, _ROWS_PER_GROUP // self.job.k)
            for first in part.users[::size]:
                ids, users = self._users(rows.recommender.bundle, first, min(first + size, part.users.stop))
                sources.update({"two-stage": int(users.is_known.sum()), "popular": users.num_unknown})
                yield rows.batch(ids, users)

        ids, _ = self._users(rows.recommender.bundle, part.users.start, part.users.stop)
        return number, part.write(rows.schema(ids), batches(), sources), False

    def _users(self, bundle: Bundle, start: int, stop: int) -> tuple[pa.Array, Lookup]:
        if self.user_ids is not None:
            ids = self.user_ids.get()[start:stop]
            return ids, bundle.users.lookup(ids)
        user_idx = np.arange(start, stop)
        return bundle.users.ids_of(user_idx), Lookup(user_idx, np.ones(stop - start, np.bool_))


@lru_cache(maxsize=1)
def _open_rows(path: Location, job: ListsJob) -> ListRows:
    """A process keeps one bundle open between parts."""
    recommender = Recommender(open_version(path, job.bundle))
    return ListRows.of(recommender, k=job.k, num_candidates=job.num_candidates)


def open_version(path: Location, version: str) -> Bundle:
    """Returns the bundle that the driver opened at a path."""
    bundle = Bundle.open(path)
    assert bundle.version == version, (bundle.version, version)
    return bundle
