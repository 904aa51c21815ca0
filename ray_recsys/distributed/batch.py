"""Recommendations for all users of a bundle, and scores of given pairs, over the cluster.

`recommend` runs over Ray Data tasks that write a file each; `score` streams one file through Ray tasks and writes the
rows in their order. A process opens the bundle once. Does not know how a recommendation is made (see
`core.recommending.recommender`).
"""

import time
from collections import Counter, deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import ray
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.artifact import atomic_directory
from ray_recsys.core.id_files import IdFile, check_ending
from ray_recsys.core.integer_texts import are_integers
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.pair_scores import PairScorer
from ray_recsys.core.table_file import ENDINGS, write_table_file
from ray_recsys.core.vocabulary import normal_ids
from ray_recsys.distributed.batch_tasks import RecommendTask, open_version
from ray_recsys.distributed.executor import run_tasks
from ray_recsys.distributed.ray_errors import root_cause
from ray_recsys.distributed.resources import DEFAULT_CLUSTER, require_cpu
from ray_recsys.errors import DataError
from ray_recsys.progress import Reporter, silent

_BATCHES_PER_CPU = 2  # in flight: one being scored, one waiting


class BatchResult(BaseModel):
    """What `recommend` wrote."""

    model_config = ConfigDict(frozen=True)

    output: Path
    bundle: str
    """Version."""
    num_users: int
    num_recommendations: int
    sources: dict[str, int]
    """Users by source, in the API's words: two-stage, or popular for those that the bundle does not know."""
    num_unknown_users: int
    seconds: float
    users_per_s: float


class ScoreResult(BaseModel):
    """What `score` wrote."""

    model_config = ConfigDict(frozen=True)

    output: Path
    bundle: str
    """Version."""
    num_rows: int
    num_unknown: int
    """Rows whose user or item the bundle does not know: their score is null."""
    seconds: float


def recommend(
    bundle: Path, output: Path, recipe: Recipe, *, users: Path | None = None, k: int = 10, report: Reporter = silent
) -> BatchResult:
    """Writes the best k items of users, the same as HTTP gives, to Parquet files in a new directory.

    Rows are user_id, rank, item_id, score, title (if the bundle has titles), source; users in order of the file given,
    else of their index; all of a user's rows in one file.

    Args:
        bundle: Directory of the bundle.
        output: Directory to make; it appears when it is complete.
        recipe: `serve.num_candidates` counts.
        users: File with a user_id column, or a .txt file of one id a line; repeated ids count once. A user whom the
            bundle does not know gets popular items. None: all users of the bundle.
        k: Items per user, as long as there are as many that the user has not seen.
        report: Progress.

    Raises:
        ArtifactError: The bundle cannot be used, or the output exists.
        DataError: The file of users cannot be used.
        ClusterError: No CPU is free.
    """
    start_s = time.monotonic()
    opened = Bundle.open(bundle)
    user_ids = None if users is None else _read_users(users, is_integer=opened.users.is_integer)
    num_users = opened.manifest.num_users if user_ids is None else len(user_ids)
    require_cpu("recommend", recipe.cluster, report=report)
    num_files = -(-num_users // RecommendTask.USERS_PER_FILE)
    sources: Counter[str] = Counter()
    num_rows = 0
    with atomic_directory(output) as staging:
        task = RecommendTask(
            bundle=opened.path,
            version=opened.version,
            output=staging,
            users=None if user_ids is None else ray.put(user_ids),
            num_users=num_users,
            k=k,
            num_candidates=recipe.serve.num_candidates,
        )
        for counts, rows in run_tasks(task, num_files, stage=f"recommending into {output}"):
            sources += counts
            num_rows += rows
            report(f"{sources.total():,} of {num_users:,} users")
    seconds = time.monotonic() - start_s
    return BatchResult(
        output=output,
        bundle=opened.version,
        num_users=num_users,
        num_recommendations=num_rows,
        sources=dict(sources),
        num_unknown_users=sources["popular"],
        seconds=round(seconds, 3),
        users_per_s=round(num_users / seconds, 1),
    )


def score(
    bundle: Path,
    input: Path,  # noqa: A002 - contract
    output: Path,
    *,
    cluster: ClusterRecipe = DEFAULT_CLUSTER,
    report: Reporter = silent,
) -> ScoreResult:
    """Writes the rows of a file, in their order, with a column `score` more: null where an id is unknown.

    Args:
        bundle: Directory of the bundle.
        input: .parquet or .csv with user_id and item_id; other columns are passed on.
        output: .parquet or .csv; replaced if it is there.
        cluster: Whether to wait for nodes that start on demand.
        report: Progress.

    Raises:
        ArtifactError: The bundle cannot be used.
        DataError: The input cannot be used, or has a column `score` already.
        ClusterError: No CPU is free.
    """
    start_s = time.monotonic()
    check_ending(output, ENDINGS)
    file = IdFile.open(input, ("user_id", "item_id"))
    if "score" in file.schema.names:
        raise DataError(f"{input} has a column score already; rename it, since the scores get this name")
    opened = Bundle.open(bundle)
    if output.suffix == ".parquet":
        file = _with_integers(file, user=opened.users.is_integer, item=opened.catalogue.vocabulary.is_integer)
    num_unknown = 0
    require_cpu("score", cluster, report=report)

    def scored() -> Iterator[pa.RecordBatch]:
        nonlocal num_unknown
        for batch, scores in _score_in_order(file, opened):
            num_unknown += scores.null_count
            yield pa.RecordBatch.from_arrays([*batch.columns, scores], schema=schema)

    schema = file.schema.append(pa.field("score", pa.float32()))
    num_rows = write_table_file(output, schema, scored())
    report(f"{num_rows:,} pairs scored, {num_unknown:,} with an unknown id")
    seconds = round(time.monotonic() - start_s, 3)
    return ScoreResult(
        output=output, bundle=opened.version, num_rows=num_rows, num_unknown=num_unknown, seconds=seconds
    )


def num_cpus() -> int:
    """Returns the CPUs of the cluster."""
    return int(ray.cluster_resources().get("CPU", 1))


def _read_users(path: Path, *, is_integer: bool) -> pa.Array:
    """Returns the distinct ids of a file: integers if the bundle's are and all of these are, else strings."""
    given = IdFile.open(path, ("user_id",)).read(("user_id",))["user_id"]
    try:
        column = normal_ids(given).unique()
    except DataError as error:
        raise DataError(f"{path}, column user_id: {error}") from None
    if not is_integer:
        return column.cast(pa.large_string())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) or are_integers(column) else column


def _with_integers(file: IdFile, *, user: bool, item: bool) -> IdFile:
    """Returns a text file with its id columns as integers where the bundle's ids are and all of the file's are."""
    if file.path.suffix == ".parquet":
        return file
    wanted = [name for name, is_integer in (("user_id", user), ("item_id", item)) if is_integer]
    for batch in file.batches():
        wanted = [name for name in wanted if are_integers(batch[name])]
    schema = [pa.field(f.name, pa.int64() if f.name in wanted else f.type) for f in file.schema]
    return IdFile(file.path, pa.schema(schema))


def _score_in_order(file: IdFile, bundle: Bundle) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Yields each batch with its scores, a bounded number of batches in flight."""
    most = _BATCHES_PER_CPU * num_cpus()
    waiting: deque[tuple[pa.RecordBatch, ray.ObjectRef[pa.Array]]] = deque()
    for batch in file.batches():
        ids = batch["user_id"], batch["item_id"]
        waiting.append((batch, _score_batch.remote(bundle.path, bundle.version, *ids)))
        if len(waiting) >= most:
            yield _finished(waiting.popleft())
    while waiting:
        yield _finished(waiting.popleft())


def _finished(pending: "tuple[pa.RecordBatch, ray.ObjectRef[pa.Array]]") -> tuple[pa.RecordBatch, pa.Array]:
    batch, reference = pending
    try:
        return batch, ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise root_cause(error) from None


@ray.remote
def _score_batch(path: Path, version: str, user_ids: pa.Array, item_ids: pa.Array) -> pa.Array:
    torch.set_num_threads(1)
    return _pair_scorer(path, version).score(user_ids, item_ids)


@lru_cache(maxsize=1)
def _pair_scorer(path: Path, version: str) -> PairScorer:
    """A worker process keeps one bundle open between batches; `version` tells bundles at one path apart."""
    return PairScorer(open_version(path, version))
