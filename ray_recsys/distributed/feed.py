"""The epoch stream of a Ray Train worker: Ray Data tasks stream its partitions to it.

    worker  a task reads a partition, and the worker draws negatives; what fits into one window is read only once, by
            the worker itself: Ray Data's processes would take seconds to start before the first epoch
    task    a task reads a partition and draws negatives for all its positives; the worker only shuffles

Each worker streams the pieces of its own plan. Train's `datasets` are not used: they drop rows to make shards equal,
and cut blocks anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import EpochStream, WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, Samples, needed_columns
from ray_recsys.core.sampling.window_readers import HistoryReader, local_feed, samples_from_table, samples_to_table
from ray_recsys.distributed.resources import FeedResources


def worker_feed(
    prepared: PreparedSet,
    recipe: Recipe,
    resources: FeedResources,
    *,
    rank: int,
    world_size: int,
    shares: Sequence[int] | None = None,
) -> EpochStream:
    """Returns the epochs of worker `rank`, streamed through Ray Data.

    Args:
        prepared: The set, in storage that all nodes reach.
        recipe: Feed, objective, batch size and seed.
        resources: From `require_workers`, called once by the driver.
        rank: Of this worker.
        world_size: Number of workers.
        shares: That of `EpochPlan.make`.
    """
    plan = EpochPlan.of(prepared, recipe, rank=rank, world_size=world_size, shares=shares)
    sampler = NegativeSampler.from_recipe(recipe, prepared.item_counts())
    if resources.placement == "task":
        return EpochStream(plan, _SampleReader(prepared, recipe, resources, sampler), recipe)
    if plan.fits_in_a_window:
        return local_feed(prepared, recipe, rank=rank, world_size=world_size, shares=shares)
    read = partial(_read_partitions, prepared, needed_columns(recipe), resources)
    return EpochStream(plan, HistoryReader(plan, sampler, recipe, read), recipe)


def _read_partitions(
    prepared: PreparedSet, columns: list[str], resources: FeedResources, pieces: Sequence[Piece]
) -> Iterator[pa.Table]:
    partitions = prepared.manifest.partitions
    sizes = [partitions[piece.partition].num_users for piece in pieces]
    return _run_tasks(lambda piece: prepared.read_columns(piece.partition, columns), pieces, sizes, resources)


class _SampleReader:
    """Window reader of samples drawn in Ray Data tasks."""

    def __init__(
        self, prepared: PreparedSet, recipe: Recipe, resources: FeedResources, sampler: NegativeSampler
    ) -> None:
        self._prepared = prepared
        self._recipe = recipe
        self._resources = resources
        self._sampler = ray.put(sampler)

    def __call__(self, epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        """Yields the samples of each window."""
        pieces = [piece for window in windows for piece in window.pieces]
        draw = _Draw(self._prepared, self._recipe, epoch, self._sampler)
        tables = _run_tasks(draw, pieces, [piece.size for piece in pieces], self._resources)
        for window in windows:
            parts = [samples_from_table(table) for _, table in zip(window.pieces, tables, strict=False)]
            yield Samples.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Draw:
    """Draws samples for all positives of a piece, in the order of its histories."""

    prepared: PreparedSet
    recipe: Recipe
    epoch: int
    sampler: "ray.ObjectRef[NegativeSampler]"

    def __call__(self, piece: Piece) -> pa.Table:
        table = self.prepared.read_columns(piece.partition, needed_columns(self.recipe))
        positives = Positives.from_table(table, piece, self.prepared.manifest.num_items, self.recipe)
        samples = positives.samples(np.arange(positives.size), self.epoch, ray.get(self.sampler))
        return samples_to_table(samples)


def _run_tasks(
    make: Callable[[Piece], pa.Table], pieces: Sequence[Piece], sizes: list[int], resources: FeedResources
) -> Iterator[pa.Table]:
    """Yields `make(piece)`, a table with the given number of rows, for each piece in order; a few are made ahead."""
    if not pieces:
        return iter(())
    rows = [{"partition": p.partition, "begin": p.begin, "end": p.end} for p in pieces]
    tables = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        partial(_make_table, make=make),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.task_cpus,
        compute=ray.data.TaskPoolStrategy(size=resources.num_tasks),
    )
    tables.context.execution_options.preserve_order = True
    tables.context.execution_no_progress_timeout_s = -1  # training on a window may take any time
    blocks = tables.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    return _regroup(iter(blocks), sizes)


def _make_table(block: pa.Table, make: Callable[[Piece], pa.Table]) -> pa.Table:
    (row,) = block.to_pylist()
    return make(Piece(**row))


def _regroup(blocks: Iterator[Any], sizes: list[int]) -> Iterator[pa.Table]:
    """Yields tables of the given numbers of rows, in order, from blocks that Ray Data may have cut anywhere."""
    held: list[pa.Table] = []
    for size in sizes:
        while sum(len(table) for table in held) < size:
            held.append(next(blocks))
        table = pa.concat_tables(held) if held else pa.table({})
        yield table.slice(0, size)
        held = [table.slice(size)] if len(table) > size else []
