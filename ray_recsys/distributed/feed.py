"""The epoch stream over Ray: Ray Data streams each train worker's partitions to it, as histories or as drawn samples.

    worker  a Ray Data task reads a partition; the worker draws. What fits into one window is read only once.
    task    a Ray Data task reads a partition and draws for all its positives; the worker only shuffles.

Train's own split is not used: it drops rows to make shards equal and cuts blocks anywhere. This module does not know
how negatives, orders and batches are made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import EpochStream, WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, Samples, needed_columns
from ray_recsys.core.sampling.window_readers import HistoryReader, samples_from_table, samples_to_table
from ray_recsys.distributed.feed_resources import FeedResources, check_resources
from ray_recsys.progress import Reporter, silent

_DATASET = "train"


@dataclass(frozen=True, slots=True)
class Feed:
    """What a trainer is given."""

    datasets: dict[str, ray.data.Dataset]
    data_config: ray.train.DataConfig
    resources: FeedResources


def make_feed(prepared: PreparedSet, recipe: Recipe, *, report: Reporter = silent) -> Feed:
    """Returns the feed of a training run, on the driver; `report` hears of nodes that are waited for.

    Raises:
        ClusterError: The cluster cannot hold the trainers and feed them.
    """
    resources = check_resources(recipe.cluster, report=report)
    rows = [{"partition": p, "num_users": info.num_users} for p, info in enumerate(prepared.manifest.partitions)]
    listing = ray.data.from_items(rows, override_num_blocks=1)
    return Feed({_DATASET: listing}, PartitionConfig(prepared.path, resources), resources)


class PartitionConfig(ray.train.DataConfig):
    """Gives each train worker a stream over the listed partitions, in which it asks for its own."""

    def __init__(self, path: Path, resources: FeedResources) -> None:
        super().__init__()
        self._path = path
        self._resources = resources

    def configure(
        self,
        datasets: dict[str, ray.data.Dataset],
        world_size: int,
        worker_handles: Any = None,  # noqa: ARG002 - Train's signature
        worker_node_ids: Any = None,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Returns a `PartitionStream` for each worker; Train hands on whatever it is given."""
        streams = {}
        for name, listing in datasets.items():
            num_users = {row["partition"]: row["num_users"] for row in listing.take_all()}
            streams[name] = PartitionStream(self._path, num_users, self._resources)
        return [dict(streams) for _ in range(world_size)]


@dataclass(frozen=True, slots=True)
class PartitionStream:
    """Runs a function of pieces in Ray Data tasks, and yields what it makes of each, in order."""

    path: Path
    num_users: dict[int, int]
    """Rows of each partition."""
    resources: FeedResources

    def tables(
        self, pieces: Sequence[Piece], make: Callable[[Piece], pa.Table], sizes: list[int]
    ) -> Iterator[pa.Table]:
        """Yields `make(piece)`, a table of the given size, for each piece; a few are made ahead."""
        rows = [{"partition": p.partition, "begin": p.begin, "end": p.end} for p in pieces]
        tasks = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            partial(_make_piece, make=make),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=self.resources.task_cpus,
            compute=ray.data.TaskPoolStrategy(size=self.resources.num_tasks),
        )
        tasks.context.execution_options.preserve_order = True
        tasks.context.execution_no_progress_timeout_s = -1  # the trainer may take a window's time to read on
        blocks = tasks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        return _regroup(iter(blocks), sizes)


def worker_feed(prepared: PreparedSet, recipe: Recipe, *, rank: int, world_size: int) -> EpochStream:
    """Returns the epochs of a train worker; called by every worker, inside Ray Train."""
    stream = ray.train.get_dataset_shard(_DATASET)
    assert isinstance(stream, PartitionStream)
    return stream_epochs(prepared, recipe, stream, rank=rank, world_size=world_size)


def stream_epochs(
    prepared: PreparedSet, recipe: Recipe, stream: PartitionStream, *, rank: int, world_size: int
) -> EpochStream:
    """Returns the epochs of worker `rank`, streamed through Ray Data in the stream's placement."""
    num_training = [info.num_training for info in prepared.manifest.partitions]
    plan = EpochPlan.make(num_training, recipe, rank=rank, world_size=world_size)
    sampler = NegativeSampler.from_recipe(recipe, prepared.item_counts())
    if stream.resources.placement == "task":
        return EpochStream(plan, _TaskSource(prepared, recipe, stream, sampler), recipe)
    return EpochStream(plan, HistoryReader(plan, sampler, recipe, partial(_read, prepared, recipe, stream)), recipe)


def _read(
    prepared: PreparedSet, recipe: Recipe, stream: PartitionStream, pieces: Sequence[Piece]
) -> Iterator[pa.Table]:
    columns = needed_columns(recipe)
    sizes = [stream.num_users[piece.partition] for piece in pieces]
    return stream.tables(pieces, lambda piece: prepared.read_columns(piece.partition, columns), sizes)


class _TaskSource:
    """Windows of samples that Ray Data tasks drew."""

    def __init__(
        self, prepared: PreparedSet, recipe: Recipe, stream: PartitionStream, sampler: NegativeSampler
    ) -> None:
        self._prepared = prepared
        self._recipe = recipe
        self._stream = stream
        self._sampler = ray.put(sampler)

    def __call__(self, epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        pieces = [piece for window in windows for piece in window.pieces]
        draw = _Drawer(self._prepared, self._recipe, epoch, self._sampler)
        tables = self._stream.tables(pieces, draw, [piece.size for piece in pieces])
        for window in windows:
            parts = [samples_from_table(table) for _, table in zip(window.pieces, tables, strict=False)]
            yield Samples.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _Drawer:
    """Draws for all positives of a piece, in the order of its histories."""

    prepared: PreparedSet
    recipe: Recipe
    epoch: int
    sampler: "ray.ObjectRef[NegativeSampler]"

    def __call__(self, piece: Piece) -> pa.Table:
        table = self.prepared.read_columns(piece.partition, needed_columns(self.recipe))
        positives = Positives.from_table(table, piece, self.prepared.manifest.num_items, self.recipe)
        samples = positives.samples(np.arange(positives.size), self.epoch, ray.get(self.sampler))
        return samples_to_table(samples)


def _make_piece(block: pa.Table, make: Callable[[Piece], pa.Table]) -> pa.Table:
    (row,) = block.to_pylist()
    return make(Piece(**row))


def _regroup(blocks: Iterator[Any], sizes: list[int]) -> Iterator[pa.Table]:
    """Yields tables of the given sizes, in order, from blocks that Ray Data may have cut anywhere."""
    held: list[pa.Table] = []
    for size in sizes:
        while sum(len(table) for table in held) < size:
            held.append(next(blocks))
        table = pa.concat_tables(held) if held else pa.table({})
        yield table.slice(0, size)
        held = [table.slice(size)] if len(table) > size else []
