"""A raw interaction log → a prepared set, in passes of tasks that exchange their outputs (`core.exchange`).

Chunks of the log become blocks of rows (`blocks`), items are merged (`items`), rows go to the partition of their user
(`gathering`), are deduplicated, filtered and split there (`settling`), and are written (`result`). The driver sees no
row and no id, only a few numbers and handles per task. The result depends on the rows alone, not on their order, files
or blocks, nor on the executor.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_recsys.config import PrepareRecipe, Recipe
from ray_recsys.core.artifact import MANIFEST, read_kind
from ray_recsys.core.artifact_writer import draft, files_of_draft
from ray_recsys.core.executor import Executor
from ray_recsys.core.prepared import (
    ITEMS,
    KIND,
    SCHEMA_VERSION,
    PreparedManifest,
    PreparedSet,
    write_prepared_manifest,
)
from ray_recsys.core.preparing.blocks import ReadLog, read_log
from ray_recsys.core.preparing.checking import DropLog
from ray_recsys.core.preparing.gathering import redistribute
from ray_recsys.core.preparing.ids import NUM_BUCKETS, partition_bounds
from ray_recsys.core.preparing.items import LogItems, find_items, num_item_parts, read_side_items, write_vocabulary
from ray_recsys.core.preparing.log_files import LINE_BLOCK_BYTES, LogFile, list_log_files
from ray_recsys.core.preparing.log_reader import LogChunk, plan_chunks
from ray_recsys.core.preparing.result import build_manifest, check_left, write_partitions
from ray_recsys.core.preparing.settling import PartitionPlan, settle_rows
from ray_recsys.core.preparing.splits import find_cuts
from ray_recsys.errors import ArtifactError, DataError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.files import exists, is_file, list_folder
from ray_recsys.storage.location import Location, LocationLike

ROWS_PER_PARTITION = 1_000_000
MIN_PARTITIONS = 4
_OTHER_FILES = "the input files differ in names, sizes or times of modification"
_SECTIONS = ("input", "items", "prepare", "split")


def prepare(
    inputs: Sequence[str],
    output: LocationLike,
    recipe: Recipe,
    executor: Executor,
    *,
    items: str | None = None,
    test: Sequence[str] = (),
    overwrite: bool = False,
    report: Reporter = silent,
) -> PreparedManifest:
    """Prepares a log; an existing prepared set of the same files and recipe is detected and kept.

    Args:
        inputs: Files, folders or URIs of the log.
        output: Directory of the prepared set, in storage that every node reaches.
        recipe: Its sections input, items, prepare and split, and its seed, are used.
        executor: Runs the tasks.
        items: Side file of titles and categories.
        test: Files of the test interactions, for split.method = "given" alone.
        overwrite: Whether an existing prepared set is replaced.
        report: Receives progress.

    Raises:
        DataError: The log or the side file cannot be used, or too little is left of it.
        ArtifactError: `output` holds something else.
    """
    location = Location.of(output)
    files = [*list_log_files(inputs, recipe.input.format), *_test_files(test, recipe)]
    side_files = list_log_files([items], recipe.items.format) if items is not None else []
    identity = fingerprint(files, side_files, recipe)
    if not overwrite and (finished := _finished(location, identity, recipe)) is not None:
        report(f"{location} is up to date: it was prepared from the same files with the same recipe")
        return finished
    _check_replaceable(location)
    side = read_side_items(items, recipe.items) if items is not None else None
    chunks = plan_chunks(files, recipe.input)
    report(_describe_files(files, len(chunks)))
    with draft(location, overwrite=overwrite) as root:
        manifest = _write(root, chunks, side, recipe, executor, identity=identity, report=report)
    report(_summarize(manifest))
    return manifest


def _describe_files(files: Sequence[LogFile], num_chunks: int) -> str:
    """Returns what is read; says which files are too large for one task and cannot be split.

    The streams of gzip, bz2 and zstd have no index of where a task could begin.
    """
    size = sum(file.bytes for file in files)
    whole = [file for file in files if file.compression and file.bytes > LINE_BLOCK_BYTES]
    text = f"reading {len(files)} file(s), {size / 2**20:,.1f} MiB, in {num_chunks} chunk(s)"
    if not whole:
        return text
    return (
        f"{text}; one task each reads {len(whole)} compressed text file(s) as a whole, e.g. {whole[0].uri}: smaller "
        f"files, or Parquet, would be read in parallel"
    )


def _test_files(test: Sequence[str], recipe: Recipe) -> list[LogFile]:
    if (recipe.split.method == "given") != bool(test):
        raise DataError(
            f"split.method = {recipe.split.method!r} with {len(test)} test files",
            remedy="give --test FILE with split.method = 'given', and only with it",
        )
    return [replace(file, is_test=True) for file in list_log_files(test, recipe.input.format)] if test else []


def _finished(output: Location, identity: str, recipe: Recipe) -> PreparedManifest | None:
    """Returns the manifest of an existing prepared set with this identity; None if there is nothing at `output`."""
    if not is_file(output / MANIFEST):
        if output.is_local and exists(output) and (is_file(output) or list_folder(output)):
            raise ArtifactError(f"{output} exists and is not a prepared set", remedy="give another --output")
        return None
    manifest = PreparedSet.open(output).manifest
    if manifest.input_fingerprint == identity:
        return manifest
    raise ArtifactError(
        f"{output} holds a different prepared set ({describe_difference(manifest, recipe) or _OTHER_FILES})",
        remedy="give another --output, or --overwrite to replace it",
    )


def _check_replaceable(output: Location) -> None:
    """Refuses to replace anything but a prepared set, even with `overwrite`."""
    if output.is_local and Path(output).is_dir() and not list_folder(output):
        Path(output).rmdir()
    elif (exists(output) if output.is_local else is_file(output / MANIFEST)) and read_kind(output) != KIND:
        raise ArtifactError(
            f"{output} exists and is not a prepared set, so it is not overwritten", remedy="give another --output"
        )


def _write(
    root: Location,
    chunks: Sequence[LogChunk],
    side: pa.Table | None,
    recipe: Recipe,
    executor: Executor,
    *,
    identity: str,
    report: Reporter,
) -> PreparedManifest:
    """Writes the prepared set into an unpublished directory."""
    log = read_log(chunks, recipe.input, num_item_parts(len(chunks)), executor)
    summary = log.summary
    report(f"read {summary.rows_in:,} rows, {summary.rows_kept:,} of them good" + _dropped_so_far(summary.drops))
    if summary.rows_kept == 0:
        check_left(summary.rows_in, 0, 0, summary.drops)
    items = find_items(log.items, summary.item_kind, executor)
    plan = _plan(log, items, recipe, executor)
    inputs = redistribute(log.blocks, items.codes, plan.bucket_bounds, summary.num_bytes, executor)
    settled = settle_rows(plan, inputs, items, executor)
    drops = DropLog.merged([summary.drops, settled.drops])
    report(f"kept {settled.num_rows:,} interactions after deduplication and filters" + _dropped_so_far(drops))
    num_items = settled.totals.summary.num_in_training
    check_left(summary.rows_in, sum(step.num_users for step in settled.reports), num_items, drops)
    vocabulary = write_vocabulary(root / ITEMS, items, settled.totals, side, executor)
    if side is not None:
        names = " and ".join(name for name in side.column_names if name != "item_id") or "nothing"
        report(f"{names} joined to {vocabulary.num_in_side_file:,} of {num_items:,} items")
    written = write_partitions(plan, settled, vocabulary, root, executor)
    drops.merge(DropLog.merged(part.drops for part in written))
    digests = {ITEMS: vocabulary.digest, **{part.info.file: part.digest for part in written}}
    with files_of_draft(root, digests) as directory:
        drops.write_examples(directory / "drops")
    manifest = build_manifest(summary.rows_in, drops, plan, settled, written, recipe=recipe, identity=identity)
    write_prepared_manifest(root, manifest, digests)
    return manifest


def _plan(log: ReadLog, items: LogItems, recipe: Recipe, executor: Executor) -> PartitionPlan:
    summary = log.summary
    return PartitionPlan(
        bucket_bounds=partition_bounds(num_partitions(summary.rows_in, recipe.prepare)),
        user_kind=summary.user_kind,
        num_items=items.num_items,
        time_unit_us=summary.time_unit_us,
        cuts=find_cuts(summary, log.blocks, recipe.split, executor),
        input=recipe.input,
        rules=recipe.prepare,
        split=recipe.split,
        seed=recipe.seed,
    )


def num_partitions(num_rows: int, rules: PrepareRecipe) -> int:
    """Returns the number of partitions: the recipe's, or a function of the number of rows."""
    wanted = rules.num_partitions or max(MIN_PARTITIONS, -(-num_rows // ROWS_PER_PARTITION))
    return min(wanted, NUM_BUCKETS)


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
    """Returns a digest of a prepared set's inputs: if equal, preparing again gives the same result.

    Covers the files by name, size and time of modification, and the sections of the recipe that prepare uses.
    """
    identity = {
        "schema_version": SCHEMA_VERSION,
        "files": [[file.uri, file.format, file.bytes, file.version] for file in files],
        "side_files": [[file.uri, file.format, file.bytes, file.version] for file in side_files],
        "recipe": relevant_sections(recipe),
    }
    if test_files := [file.uri for file in files if file.is_test]:
        identity["test_files"] = test_files
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe_difference(manifest: PreparedManifest, recipe: Recipe) -> str:
    """Returns how a prepared set's recipe differs from another, e.g. `split.method: was 'a', now 'b'`; empty: not."""
    then, now = _flat(relevant_sections(manifest.recipe)), _flat(relevant_sections(recipe))
    changed = [f"{key}: was {then[key]!r}, now {now[key]!r}" for key in now if then[key] != now[key]]
    return "; ".join(changed)


def relevant_sections(recipe: Recipe) -> dict[str, Any]:
    """Returns the sections of a recipe that prepare reads, and the seed where it does."""
    sections = recipe.model_dump(mode="json", include={*_SECTIONS})
    return {"seed": recipe.seed if recipe.split.method in ("random_per_user", "given") else None, **sections}


def _flat(relevant: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"seed": relevant["seed"]}
    for section in _SECTIONS:
        flat.update({f"{section}.{key}": value for key, value in relevant[section].items()})
    return flat
