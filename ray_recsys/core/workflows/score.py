"""Scores of given (user_id, item_id) pairs, in the order of their file."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.executor import Executor
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.table_files import OUTPUT_ENDINGS, IdFile, check_ending, write_table_file
from ray_recsys.core.vocabulary import are_integers
from ray_recsys.core.workflows.recommend import open_version
from ray_recsys.errors import DataError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import Location, LocationLike


class ScoreResult(BaseModel):
    """Summary of the output of `score`."""

    model_config = ConfigDict(frozen=True)

    output: Location
    bundle: str
    """Version."""
    num_rows: int
    num_unknown: int
    """Rows with an unknown user or item: their score is null."""
    seconds: float


def score(
    bundle: LocationLike,
    input: LocationLike,  # noqa: A002 - named as the option is
    output: LocationLike,
    executor: Executor,
    *,
    report: Reporter = silent,
) -> ScoreResult:
    """Writes the rows of a file, in their order, with one more column `score`: null where an id is unknown.

    Args:
        bundle: Directory of the bundle.
        input: .parquet or .csv with user_id and item_id; other columns are passed through.
        output: .parquet or .csv; replaced if it exists.
        executor: Scores batches of rows.
        report: Progress.

    Raises:
        ArtifactError: The bundle cannot be used.
        DataError: The input cannot be used, or has a column `score` already.
    """
    start_s = time.monotonic()
    check_ending(output, OUTPUT_ENDINGS)
    file = IdFile.open(input, ("user_id", "item_id"))
    if "score" in file.schema.names:
        raise DataError(f"{input} has a column score already", remedy="rename it: the scores get this name")
    opened = Bundle.open(bundle)
    if Location.of(output).suffix == ".parquet":
        file = _with_integers(file, user=opened.users.is_integer, item=opened.catalogue.vocabulary.is_integer)
    num_unknown = 0

    def scored() -> Iterator[pa.RecordBatch]:
        nonlocal num_unknown
        task = _ScoreBatch(Location.of(bundle), opened.version)
        for batch in executor.stream(task, file.batches(), stage=f"scoring {input}"):
            scores = batch.column(batch.num_columns - 1)
            num_unknown += scores.null_count
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)

    schema = file.schema.append(pa.field("score", pa.float32()))
    num_rows = write_table_file(output, schema, scored())
    report(f"{num_rows:,} pairs scored, {num_unknown:,} with an unknown id")
    seconds = round(time.monotonic() - start_s, 3)
    return ScoreResult(
        output=Location.of(output), bundle=opened.version, num_rows=num_rows, num_unknown=num_unknown, seconds=seconds
    )


def _with_integers(file: IdFile, *, user: bool, item: bool) -> IdFile:
    """Returns a text file with its id columns as integers where the bundle's ids are and all of the file's are."""
    if file.path.suffix == ".parquet":
        return file
    wanted = [name for name, is_integer in (("user_id", user), ("item_id", item)) if is_integer]
    for batch in file.batches():
        wanted = [name for name in wanted if are_integers(batch[name])]
    schema = [pa.field(f.name, pa.int64() if f.name in wanted else f.type) for f in file.schema]
    return IdFile(file.path, pa.schema(schema))


@dataclass(frozen=True, slots=True)
class _ScoreBatch:
    bundle: Location
    version: str

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        torch.set_num_threads(1)
        scores = _pair_scorer(self.bundle, self.version).score(batch["user_id"], batch["item_id"])
        return batch.append_column("score", scores)


@lru_cache(maxsize=1)
def _pair_scorer(path: Location, version: str) -> "PairScorer":
    """A process keeps one bundle open between batches."""
    return PairScorer(open_version(path, version))


class PairScorer:
    """Scores pairs with a bundle's model; equal to `recommend`'s scores up to the rounding of float32 sums."""

    def __init__(self, bundle: Bundle) -> None:
        self._users = bundle.users
        self._items = bundle.catalogue.vocabulary
        self._model = bundle.load_model()

    def score(self, user_ids: pa.Array, item_ids: pa.Array) -> pa.Array:
        """Returns the score of each pair, float32; null for an unknown user or item.

        Raises:
            DataError: The ids are neither integers nor strings.
        """
        users, items = self._users.lookup(user_ids), self._items.lookup(item_ids)
        is_known = users.is_known & items.is_known
        scores = np.zeros(len(is_known), np.float32)
        if is_known.any():
            distinct, rows = np.unique(users.idx[is_known], return_inverse=True)
            factors = self._model.users(distinct)
            scores[is_known] = self._model.scores(factors.take(rows), items.idx[is_known][:, None])[:, 0]
        return pa.array(scores, mask=~is_known)
