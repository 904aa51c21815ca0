"""The yardstick of `prepare_scale`: what prepare does, as one Polars program that holds the log in memory.

Checks rows, deduplicates (the last of a pair), drops rare items, then rare users, splits leave-one-out, encodes, groups
into histories, writes. Knows nothing of reasons for drops, fingerprints or of any other recipe.
"""

from pathlib import Path

import polars as pl

MIN_FOR_LEAVE_ONE_OUT = 3
LAST_TIME_S = 4_102_444_800  # year 2100


def polars_prepare(log: Path, output: Path, *, min_interactions: int) -> dict[str, int]:
    """Writes items.parquet and users.parquet; returns the counts that a prepared set's manifest has too."""
    rows = pl.scan_parquet(log / "*.parquet")
    good = rows.drop_nulls().filter(pl.col("timestamp").is_between(0, LAST_TIME_S))
    pairs = good.group_by("user_id", "item_id").agg(pl.col("timestamp").max()).collect(engine="streaming")
    pairs = pairs.join(_frequent(pairs, "item_id", min_interactions), on="item_id", how="semi")
    pairs = pairs.join(_frequent(pairs, "user_id", min_interactions), on="user_id", how="semi")
    users = pairs.select(pl.col("user_id").unique().sort()).with_row_index("user_idx")
    pairs = pairs.join(users, on="user_id").drop("user_id").sort("user_idx", "timestamp", "item_id")
    lengths, places = pl.len().over("user_idx"), pl.int_range(pl.len()).over("user_idx")
    from_end = lengths - places
    is_split = lengths >= MIN_FOR_LEAVE_ONE_OUT
    label = pl.when(is_split & (from_end == 1)).then(2).when(is_split & (from_end == 2)).then(1).otherwise(0)
    pairs = pairs.with_columns(label.cast(pl.Int8).alias("label"))
    items = pairs.filter(pl.col("label") == 0).group_by("item_id").len("count")
    items = items.sort(["count", "item_id"], descending=[True, False]).with_row_index("item_idx")
    pairs = pairs.join(items.select("item_id", "item_idx"), on="item_id", maintain_order="left").drop("item_id")
    histories = users
    for value, prefix in enumerate(("", "validation_", "test_")):
        part = pairs.filter(pl.col("label") == value).group_by("user_idx", maintain_order=True)
        lists = part.agg(
            pl.col("item_idx").alias(f"{prefix}item_idx"), pl.col("timestamp").alias(f"{prefix}timestamp_s")
        )
        histories = histories.join(lists, on="user_idx", how="left", maintain_order="left")
    items.write_parquet(output / "items.parquet", compression="zstd", compression_level=1)
    histories.write_parquet(output / "users.parquet", compression="zstd", compression_level=1)
    num_training, num_validation = ((pairs["label"] == value).sum() for value in (0, 1))
    return {
        "num_users": len(users),
        "num_items": len(items),
        "num_training": int(num_training),
        "num_validation": int(num_validation),
    }


def _frequent(pairs: pl.DataFrame, column: str, min_interactions: int) -> pl.DataFrame:
    return pairs.group_by(column).len().filter(pl.col("len") >= min_interactions)
