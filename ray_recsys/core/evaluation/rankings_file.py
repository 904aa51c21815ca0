"""The file of `evaluate --output`: every evaluated user's ranks and top K, from which anyone can recompute the metrics.

One row per model and user:

    model              string, the model's label
    user_id            as in the prepared set
    num_training       int32, the user's training interactions
    held_out_item_id   list of item ids
    rank               list<int32>, of each held-out item, from 1
    num_candidates     list<int32>, of each ranked list: one per user with full ranking, else one per held-out item
    top_item_id        list of item ids, best first: the first max(evaluate.ks) of full ranking; null if sampled

The Parquet schema's metadata `ray_recsys` is JSON: protocol, split, seed, ks, and the data's fingerprint.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.evaluation.metrics import RankedLists
from ray_recsys.core.evaluation.protocols import RankedUsers
from ray_recsys.core.histories import Histories

METADATA = b"ray_recsys"


def rankings_schema(user_id: pa.DataType, item_id: pa.DataType, facts: dict[str, object]) -> pa.Schema:
    """Returns the schema of the file for given types of ids; `facts` become its metadata."""
    return pa.schema(
        [
            ("model", pa.string()),
            ("user_id", user_id),
            ("num_training", pa.int32()),
            ("held_out_item_id", pa.list_(item_id)),
            ("rank", pa.list_(pa.int32())),
            ("num_candidates", pa.list_(pa.int32())),
            ("top_item_id", pa.list_(item_id)),
        ],
        metadata={METADATA: json.dumps(facts)},
    )


def rankings_batch(
    label: str, ranked: RankedUsers, histories: Histories, *, user_ids: pa.Array, item_ids: pa.Array, schema: pa.Schema
) -> pa.RecordBatch:
    """Returns the rows of some ranked users of one model.

    Args:
        label: Of the model.
        ranked: B users.
        histories: Has these users.
        user_ids: Of all users of `histories`.
        item_ids: Of the catalogue.
        schema: Of the file.
    """
    num_users = len(ranked.user_idx)
    rows = ranked.user_idx - histories.first_user_idx
    held_out = _offsets(ranked.rows, num_users)
    if ranked.top is None:
        top: pa.Array = pa.nulls(num_users, schema.field("top_item_id").type)
    else:
        lengths = np.concatenate([[0], np.cumsum((ranked.top >= 0).sum(axis=1))]).astype(np.int32)
        top = pa.ListArray.from_arrays(lengths, item_ids.take(pa.array(ranked.top[ranked.top >= 0])))
    columns = [
        pa.array([label] * num_users, pa.string()),
        user_ids.take(pa.array(rows)),
        pa.array(histories.training.lengths[rows], pa.int32()),
        pa.ListArray.from_arrays(held_out, item_ids.take(pa.array(ranked.item_idx))),
        pa.ListArray.from_arrays(held_out, pa.array(ranked.lists.ranks, pa.int32())),
        pa.ListArray.from_arrays(
            _offsets(ranked.lists.user_of, num_users), pa.array(ranked.num_candidates, pa.int32())
        ),
        top,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _offsets(rows: Int64s, num_users: int) -> pa.Array:
    assert (np.diff(rows) >= 0).all(), "lists are in order of their users"
    return pa.array(np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=num_users))]), pa.int32())


def read_facts(path: Path) -> dict[str, object]:
    """Returns the protocol, split, seed, ks and data fingerprint of a file of rankings."""
    facts: dict[str, object] = json.loads(pq.read_schema(path).metadata[METADATA])
    return facts


def read_ranked_lists(path: Path) -> Iterator[tuple[str, pa.Array, RankedLists]]:
    """Yields (model, user ids, ranked lists) of each model in a file of rankings; user u has the u-th id."""
    table = pq.read_table(path, columns=["model", "user_id", "rank", "num_candidates"])
    for label in table["model"].unique().to_pylist():
        part = table.filter(pa.compute.equal(table["model"], label)).combine_chunks()
        yield label, part["user_id"].combine_chunks(), _ranked_lists(part["rank"], part["num_candidates"])


def _ranked_lists(rank: pa.ChunkedArray, num_candidates: pa.ChunkedArray) -> RankedLists:
    ranks = pa.concat_arrays(rank.chunks)
    lengths = [_lengths(column) for column in (rank, num_candidates)]
    user_of = np.repeat(np.arange(len(lengths[1])), lengths[1])
    if len(user_of) == len(lengths[0]):  # one list per user
        list_of = np.repeat(np.arange(len(lengths[0])), lengths[0])
    else:
        list_of = np.arange(len(user_of))
    return RankedLists(ranks.flatten().to_numpy().astype(np.int64), list_of, user_of)


def _lengths(column: pa.ChunkedArray) -> Int64s:
    lengths: Int64s = pa.compute.list_value_length(column).to_numpy().astype(np.int64)
    return lengths
