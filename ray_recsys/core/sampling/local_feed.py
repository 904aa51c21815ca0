"""The epoch stream of a process that trains alone: partitions are read from the prepared set, without Ray.

Equal, byte for byte, to what one Ray Train worker is fed.
"""

from collections.abc import Iterator, Sequence

import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Window
from ray_recsys.core.sampling.epoch_stream import DrawnHere, EpochStream, WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, needed_columns


def local_feed(prepared: PreparedSet, recipe: Recipe) -> EpochStream:
    """Returns all epochs of a prepared set as one worker sees them."""
    num_training = [info.num_training for info in prepared.manifest.partitions]
    plan = EpochPlan.make(num_training, recipe, rank=0, world_size=1)
    sampler = NegativeSampler.from_recipe(recipe, prepared.item_counts())
    kept: list[Positives] = []

    def source(epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        for window in windows:
            positives = kept[0] if kept else _read(prepared, recipe, window)
            if plan.is_one_window and not kept:
                kept.append(positives)
            yield DrawnHere(positives, epoch, sampler)

    return EpochStream(plan, source, recipe)


def _read(prepared: PreparedSet, recipe: Recipe, window: Window) -> Positives:
    wanted = set(needed_columns(recipe))
    parts = []
    for piece in window.pieces:
        file = pq.ParquetFile(prepared.partition_path(piece.partition))
        table = file.read(columns=[name for name in file.schema_arrow.names if name in wanted])
        parts.append(Positives.from_table(table, piece, prepared.manifest.num_items, recipe))
    return Positives.concatenate(parts)
