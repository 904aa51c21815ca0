"""A raw interaction log → a prepared set, in two passes of Ray Data tasks over staging files.

Pass 1 reads chunks of the log (`scatter`), pass 2 works on partitions of users (`partition_steps`,
`partition_writer`, all of `core.preparing`). Rows go through files beside the output, never through the
object store or the driver; the driver holds the items of the log and a few numbers per task. The result depends on the
rows alone, not on their order, files, blocks or the cluster.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import MANIFEST, atomic_directory, read_kind
from ray_recsys.core.prepared import ITEMS, KIND, PreparedManifest, PreparedSet, write_prepared_manifest
from ray_recsys.core.preparing.drops import DropLog
from ray_recsys.core.preparing.fingerprint import describe_difference, fingerprint
from ray_recsys.core.preparing.id_hash import NUM_BUCKETS, partition_bounds
from ray_recsys.core.preparing.item_codes import merge_items, vocabulary_order
from ray_recsys.core.preparing.log_files import list_log_files
from ray_recsys.core.preparing.log_reader import LogChunk, plan_chunks
from ray_recsys.core.preparing.partition_steps import PartitionPlan
from ray_recsys.core.preparing.prepare_summary import build_manifest, check_left
from ray_recsys.core.preparing.side_items import join_side_items, read_side_items
from ray_recsys.distributed.prepare_passes import find_cuts, settle_rows, stage_log, write_partitions
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.errors import ArtifactError
from ray_recsys.progress import Reporter, silent

ROWS_PER_PARTITION = 1_000_000
MIN_PARTITIONS = 4


def prepare(
    inputs: Sequence[str],
    output: Path,
    recipe: Recipe,
    *,
    items: str | None = None,
    overwrite: bool = False,
    report: Reporter = silent,
) -> PreparedManifest:
    """Prepares a log; a finished prepared set of the same files and recipe is recognised and left as it is.

    Args:
        inputs: Files, folders or URIs of the log.
        output: The prepared set's directory, on storage that every node shares.
        recipe: Its sections input, items, prepare, split and its seed.
        items: Side file of titles and categories.
        overwrite: Whether a prepared set that is there already is made anew.
        report: Takes a line per step.

    Raises:
        DataError: The log or the side file cannot be used; nothing is left of it (EmptyDataError).
        ArtifactError: `output` holds something else.
        ClusterError: No CPU is free.
    """
    files = list_log_files(inputs, recipe.input.format)
    side_files = list_log_files([items], recipe.items.format) if items is not None else []
    identity = fingerprint(files, side_files, recipe)
    if not overwrite and (finished := _finished(output, identity, recipe)) is not None:
        report(f"{output} is finished already, of the same files and recipe: nothing to do")
        return finished
    _check_replaceable(output)
    require_cpu("prepare", recipe.cluster, report=report)
    side = read_side_items(items, recipe.items) if items is not None else None
    chunks = plan_chunks(files, recipe.input)
    size = sum(file.bytes for file in files)
    report(f"reading {len(files)} file(s), {size / 2**20:,.1f} MiB, in {len(chunks)} chunk(s)")
    with atomic_directory(output, overwrite=overwrite) as directory:
        manifest = _make(directory, chunks, side, recipe, identity=identity, report=report)
    report(_summarize(manifest))
    return manifest


def _finished(output: Path, identity: str, recipe: Recipe) -> PreparedManifest | None:
    if not (output / MANIFEST).exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ArtifactError(f"{output} exists and is no prepared set; give another --output")
        return None
    manifest = PreparedSet.open(output).manifest
    if manifest.input_fingerprint == identity:
        return manifest
    raise ArtifactError(
        f"{output} holds a prepared set made from something else ({describe_difference(manifest, recipe)}); "
        "give another --output, or --overwrite to make it anew"
    )


def _check_replaceable(output: Path) -> None:
    """Refuses to replace what is no prepared set, whatever the caller asked for."""
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    elif output.exists() and read_kind(output) != KIND:
        raise ArtifactError(f"{output} exists and is no prepared set, so it is not overwritten; give another --output")


def _make(
    directory: Path,
    chunks: Sequence[LogChunk],
    side: pa.Table | None,
    recipe: Recipe,
    *,
    identity: str,
    report: Reporter,
) -> PreparedManifest:
    """Makes the prepared set in a directory that is nobody's yet."""
    staging = directory / "staging"
    log = stage_log(chunks, recipe, staging)
    drops = log.drops
    report(f"read {log.rows_in:,} rows; {log.rows_kept:,} are good" + _dropped(drops))
    if log.rows_kept == 0:
        check_left(log.rows_in, 0, 0, drops)
    plan = PartitionPlan(
        staging=staging,
        recipe=recipe,
        blocks=log.blocks,
        bucket_bounds=partition_bounds(num_partitions(log.rows_in, recipe)),
        user_kind=log.user_kind,
        time_unit_us=log.time_unit_us,
        cuts=find_cuts(log, recipe, staging),
    )
    item_ids = merge_items(log.blocks, log.item_kind, staging)
    settled = settle_rows(plan, len(item_ids), drops)
    report(f"kept {settled.num_rows:,} interactions after deduplication and filters" + _dropped(drops))
    order = vocabulary_order(settled.item_counts[0])
    check_left(log.rows_in, sum(settled.num_users), len(order), drops)
    _write_items(directory, item_ids.take(pa.array(order)), settled.item_counts[0][order], side, report)
    written = write_partitions(plan, settled, order, directory, drops)
    shutil.rmtree(staging)
    drops.write_examples(directory / "drops")
    manifest = build_manifest(log.rows_in, drops, plan, settled, written, identity=identity)
    write_prepared_manifest(directory, manifest, {r.info.file: r.digest for r in written})
    return manifest


def num_partitions(num_rows: int, recipe: Recipe) -> int:
    """Returns the number of partitions: the recipe's, or from the number of rows alone."""
    wanted = recipe.prepare.num_partitions or max(MIN_PARTITIONS, -(-num_rows // ROWS_PER_PARTITION))
    return min(wanted, NUM_BUCKETS)


def _write_items(directory: Path, ids: pa.Array, counts: Int64s, side: pa.Table | None, report: Reporter) -> None:
    columns = {"item_idx": pa.array(np.arange(len(ids)), pa.int32()), "item_id": ids, "count": pa.array(counts)}
    if side is not None:
        joined, num_missing = join_side_items(ids, side)
        columns.update(joined)
        report(f"{' and '.join(joined) or 'nothing'} joined to {len(ids) - num_missing:,} of {len(ids):,} items")
    pq.write_table(pa.table(columns), directory / ITEMS, compression="zstd", compression_level=1)


def _summarize(manifest: PreparedManifest) -> str:
    drops = manifest.rows_dropped
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in drops.items()) or "none"
    return (
        f"{manifest.num_users:,} users, {manifest.num_items:,} items; {manifest.num_training:,} training, "
        f"{manifest.num_validation:,} validation and {manifest.num_test:,} test interactions; rows: "
        f"{manifest.rows_in:,} in = {manifest.rows_kept:,} kept + {sum(drops.values()):,} dropped ({dropped})"
    )


def _dropped(drops: DropLog) -> str:
    return f"; dropped so far: {drops.describe()}" if drops.total else ""
