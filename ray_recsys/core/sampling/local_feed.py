"""The epoch stream of a process that trains alone: partitions are read from the prepared set, without Ray.

Equal, byte for byte, to what one Ray Train worker is fed.
"""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece
from ray_recsys.core.sampling.epoch_stream import EpochStream
from ray_recsys.core.sampling.histories_source import HistoriesSource
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import needed_columns


def local_feed(prepared: PreparedSet, recipe: Recipe, *, rank: int = 0, world_size: int = 1) -> EpochStream:
    """Returns all epochs of a prepared set as worker `rank` of `world_size` sees them."""

    def read(pieces: Sequence[Piece]) -> Iterator[pa.Table]:
        columns = needed_columns(recipe)
        return (prepared.read_columns(piece.partition, columns) for piece in pieces)

    num_training = [info.num_training for info in prepared.manifest.partitions]
    plan = EpochPlan.make(num_training, recipe, rank=rank, world_size=world_size)
    sampler = NegativeSampler.from_recipe(recipe, prepared.item_counts())
    return EpochStream(plan, HistoriesSource(plan, sampler, recipe, read), recipe)
