"""A raw interaction log → a prepared set, in passes of independent tasks over staging files.

Pass 1 reads chunks of the log (`staging`), pass 2 works on partitions of users (`partitions`), the last writes them
(`result`). Rows go through files beside the output, never through the driver, which holds the items of the log and a
few numbers per task. The result depends on the rows alone, not on their order, files or blocks, nor on the executor.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_recsys.config import PrepareRecipe, Recipe
from ray_recsys.core.artifact import MANIFEST, read_kind
from ray_recsys.core.artifact_writer import atomic_directory
from ray_recsys.core.executor import Executor
from ray_recsys.core.prepared import (
    ITEMS,
    KIND,
    SCHEMA_VERSION,
    PreparedManifest,
    PreparedSet,
    write_prepared_manifest,
)
from ray_recsys.core.preparing.checking import DropLog
from ray_recsys.core.preparing.items import (
    join_side_items,
    merge_items,
    read_side_items,
    vocabulary_order,
    write_items,
)
from ray_recsys.core.preparing.log_files import LogFile, list_log_files
from ray_recsys.core.preparing.log_reader import LogChunk, plan_chunks
from ray_recsys.core.preparing.partitions import PartitionPlan, settle_rows
from ray_recsys.core.preparing.result import build_manifest, check_left, write_partitions
from ray_recsys.core.preparing.splits import find_cuts
from ray_recsys.core.preparing.staging import NUM_BUCKETS, StagedLog, partition_bounds, stage_log
from ray_recsys.errors import ArtifactError, DataError
from ray_recsys.progress import Reporter, silent

ROWS_PER_PARTITION = 1_000_000
MIN_PARTITIONS = 4
_SECTIONS = ("input", "items", "prepare", "split")


def prepare(
    inputs: Sequence[str],
    output: Path,
    recipe: Recipe,
    executor: Executor,
    *,
    items: str | None = None,
    test: Sequence[str] = (),
    overwrite: bool = False,
    report: Reporter = silent,
) -> PreparedManifest:
    """Prepares a log; an existing prepared set of the same files and recipe is recognised and kept.

    Args:
        inputs: Files, folders or URIs of the log.
        output: Directory of the prepared set, on storage that every node shares.
        recipe: Its sections input, items, prepare and split, and its seed, are used.
        executor: Runs the tasks.
        items: Side file of titles and categories.
        test: Files of the test interactions, for split.method = "given" alone.
        overwrite: Whether an existing prepared set is replaced.
        report: Told of every step.

    Raises:
        DataError: The log or the side file cannot be used, or too little is left of it.
        ArtifactError: `output` holds something else.
    """
    files = [*list_log_files(inputs, recipe.input.format), *_test_files(test, recipe)]
    side_files = list_log_files([items], recipe.items.format) if items is not None else []
    identity = fingerprint(files, side_files, recipe)
    if not overwrite and (finished := _finished(output, identity, recipe)) is not None:
        report(f"{output} is up to date: it was prepared from the same files with the same recipe")
        return finished
    _check_replaceable(output)
    side = read_side_items(items, recipe.items) if items is not None else None
    chunks = plan_chunks(files, recipe.input)
    size = sum(file.bytes for file in files)
    report(f"reading {len(files)} file(s), {size / 2**20:,.1f} MiB, in {len(chunks)} chunk(s)")
    with atomic_directory(output, overwrite=overwrite) as directory:
        manifest = _write(directory, chunks, side, recipe, executor, identity=identity, report=report)
    report(_summarize(manifest))
    return manifest


def _test_files(test: Sequence[str], recipe: Recipe) -> list[LogFile]:
    if (recipe.split.method == "given") != bool(test):
        raise DataError(
            f"split.method = {recipe.split.method!r} with {len(test)} test files",
            remedy="give --test FILE with split.method = 'given', and only with it",
        )
    return [replace(file, is_test=True) for file in list_log_files(test, recipe.input.format)] if test else []


def _finished(output: Path, identity: str, recipe: Recipe) -> PreparedManifest | None:
    """Returns the manifest of an existing prepared set with this identity; None if there is nothing at `output`."""
    if not (output / MANIFEST).exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ArtifactError(f"{output} exists and is not a prepared set", remedy="give another --output")
        return None
    manifest = PreparedSet.open(output).manifest
    if manifest.input_fingerprint == identity:
        return manifest
    raise ArtifactError(
        f"{output} holds a different prepared set ({describe_difference(manifest, recipe)})",
        remedy="give another --output, or --overwrite to replace it",
    )


def _check_replaceable(output: Path) -> None:
    """Refuses to replace anything but a prepared set, whatever the caller asked for."""
    if output.is_dir() and not any(output.iterdir()):
        output.rmdir()
    elif output.exists() and read_kind(output) != KIND:
        raise ArtifactError(
            f"{output} exists and is not a prepared set, so it is not overwritten", remedy="give another --output"
        )


def _write(
    directory: Path,
    chunks: Sequence[LogChunk],
    side: pa.Table | None,
    recipe: Recipe,
    executor: Executor,
    *,
    identity: str,
    report: Reporter,
) -> PreparedManifest:
    """Writes the prepared set into an unpublished directory."""
    staging = directory / "staging"
    log = stage_log(chunks, recipe.input, staging, executor)
    report(f"read {log.rows_in:,} rows, {log.rows_kept:,} of them good" + _dropped_so_far(log.drops))
    if log.rows_kept == 0:
        check_left(log.rows_in, 0, 0, log.drops)
    plan = _plan(log, recipe, staging, executor)
    item_ids = merge_items(log.blocks, log.item_kind, staging)
    settled = settle_rows(plan, len(item_ids), executor)
    drops = DropLog.merged([log.drops, settled.drops])
    report(f"kept {settled.num_rows:,} interactions after deduplication and filters" + _dropped_so_far(drops))
    order = vocabulary_order(settled.item_counts[0])
    check_left(log.rows_in, sum(step.num_users for step in settled.reports), len(order), drops)
    ids, counts = item_ids.take(pa.array(order)), settled.item_counts[0][order]
    write_items(directory / ITEMS, ids, counts, _side_columns(ids, side, report))
    written = write_partitions(plan, settled, order, directory, executor)
    drops.merge(DropLog.merged(part.drops for part in written))
    shutil.rmtree(staging)
    drops.write_examples(directory / "drops")
    manifest = build_manifest(log.rows_in, drops, plan, settled, written, recipe=recipe, identity=identity)
    write_prepared_manifest(directory, manifest, {part.info.file: part.digest for part in written})
    return manifest


def _plan(log: StagedLog, recipe: Recipe, staging: Path, executor: Executor) -> PartitionPlan:
    return PartitionPlan(
        staging=staging,
        blocks=log.blocks,
        bucket_bounds=partition_bounds(num_partitions(log.rows_in, recipe.prepare)),
        user_kind=log.user_kind,
        time_unit_us=log.time_unit_us,
        cuts=find_cuts(log, recipe.split, staging, executor),
        input=recipe.input,
        rules=recipe.prepare,
        split=recipe.split,
        seed=recipe.seed,
    )


def num_partitions(num_rows: int, rules: PrepareRecipe) -> int:
    """Returns the number of partitions: the recipe's, or a function of the number of rows."""
    wanted = rules.num_partitions or max(MIN_PARTITIONS, -(-num_rows // ROWS_PER_PARTITION))
    return min(wanted, NUM_BUCKETS)


def _side_columns(ids: pa.Array, side: pa.Table | None, report: Reporter) -> dict[str, pa.Array]:
    if side is None:
        return {}
    columns, num_missing = join_side_items(ids, side)
    report(f"{' and '.join(columns) or 'nothing'} joined to {len(ids) - num_missing:,} of {len(ids):,} items")
    return columns


def _summarize(manifest: PreparedManifest) -> str:
    drops = manifest.rows_dropped
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in drops.items()) or "none"
    return (
        f"{manifest.num_users:,} users, {manifest.num_items:,} items; {manifest.num_training:,} training, "
        f"{manifest.num_validation:,} validation and {manifest.num_test:,} test interactions; rows: "
        f"{manifest.rows_in:,} in = {manifest.rows_kept:,} kept + {sum(drops.values()):,} dropped ({dropped})"
    )


def _dropped_so_far(drops: DropLog) -> str:
    return f"; dropped so far: {drops.describe()}" if drops.total else ""


def fingerprint(files: Sequence[LogFile], side_files: Sequence[LogFile], recipe: Recipe) -> str:
    """Returns a digest of what a prepared set is made from: equal means that preparing again gives the same.

    Covers the files by name, size and time of modification, and the sections of the recipe that prepare uses.
    """
    identity = {
        "schema_version": SCHEMA_VERSION,
        "files": [[file.uri, file.format, file.bytes, file.version] for file in files],
        "side_files": [[file.uri, file.format, file.bytes, file.version] for file in side_files],
        "recipe": _relevant(recipe),
    }
    if test_files := [file.uri for file in files if file.is_test]:
        identity["test_files"] = test_files
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe_difference(manifest: PreparedManifest, recipe: Recipe) -> str:
    """Returns how a finished prepared set differs from the requested one, e.g. `split.method: was 'a', now 'b'`."""
    then, now = _flat(_relevant(manifest.recipe)), _flat(_relevant(recipe))
    changed = [f"{key}: was {then[key]!r}, now {now[key]!r}" for key in now if then[key] != now[key]]
    return "; ".join(changed) or "the input files differ in names, sizes or times of modification"


def _relevant(recipe: Recipe) -> dict[str, Any]:
    sections = recipe.model_dump(mode="json", include={*_SECTIONS})
    return {"seed": recipe.seed if recipe.split.method in ("random_per_user", "given") else None, **sections}


def _flat(relevant: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"seed": relevant["seed"]}
    for section in _SECTIONS:
        flat.update({f"{section}.{key}": value for key, value in relevant[section].items()})
    return flat
