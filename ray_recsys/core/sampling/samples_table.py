"""Samples as an Arrow table, for their way from the process that draws them to the one that trains on them."""

import numpy as np
import pyarrow as pa

from ray_recsys.core.sampling.positives import Samples


def samples_to_table(samples: Samples) -> pa.Table:
    """Returns one row a sample."""
    items = pa.array(samples.item_idx.reshape(-1))
    columns = {
        "user_idx": pa.array(samples.user_idx),
        "item_idx": pa.FixedSizeListArray.from_arrays(items, samples.item_idx.shape[1]),
        "weight": pa.array(samples.weight),
    }
    if samples.rating is not None:
        columns["rating"] = pa.array(samples.rating)
    return pa.table(columns)


def samples_from_table(table: pa.Table) -> Samples:
    """Returns the samples of a table that `samples_to_table` made; the arrays may be read-only."""
    table = table.combine_chunks()
    items = table["item_idx"].combine_chunks()
    rating = table["rating"].to_numpy() if "rating" in table.column_names else None
    item_idx = items.flatten().to_numpy().reshape(len(table), -1)
    return Samples(
        table["user_idx"].to_numpy(), item_idx.astype(np.int32, copy=False), table["weight"].to_numpy(), rating
    )
