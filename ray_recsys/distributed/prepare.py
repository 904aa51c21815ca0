"""A raw interaction log → a prepared set, in two passes of Ray Data tasks over staging files.

Pass 1 reads chunks of the log (`core.scatter`), pass 2 works on partitions of users (`core.partition_steps`,
`core.partition_writer`). Rows go through files beside the output, never through the object store or the driver; the
driver holds the items of the log and a few numbers per task. The result depends on the rows alone, not on their order,
files, blocks or the cluster.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.artifact import MANIFEST, FileDigest, atomic_directory
from ray_recsys.core.drops import DropLog
from ray_recsys.core.fingerprint import describe_difference, fingerprint
from ray_recsys.core.histories import Int64s
from ray_recsys.core.id_hash import NUM_BUCKETS, partition_bounds
from ray_recsys.core.interactions import merge_kinds
from ray_recsys.core.item_codes import merge_items, vocabulary_order
from ray_recsys.core.log_files import list_log_files
from ray_recsys.core.log_reader import LogChunk, plan_chunks
from ray_recsys.core.partition_steps import (
    PartitionPlan,
    StepReport,
    filter_step,
    gather,
    label_step,
    sum_item_counts,
)
from ray_recsys.core.partition_writer import WriteReport, write_users
from ray_recsys.core.prepared import ITEMS, PreparedManifest, PreparedSet, write_prepared_manifest
from ray_recsys.core.scatter import ChunkReport, scatter_chunk
from ray_recsys.core.side_items import join_side_items, read_side_items
from ray_recsys.core.splits import count_times, cuts_from_fractions
from ray_recsys.core.timestamps import MICROSECONDS
from ray_recsys.core.user_rows import UserRows
from ray_recsys.distributed.tasks import run_tasks
from ray_recsys.errors import ArtifactError, DataError, EmptyDataError
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
    """
    files = list_log_files(inputs, recipe.input.format)
    side_files = list_log_files([items], recipe.items.format) if items is not None else []
    identity = fingerprint(files, side_files, recipe)
    if not overwrite and (finished := _finished(output, identity, recipe)) is not None:
        report(f"{output} is finished already, of the same files and recipe: nothing to do")
        return finished
    _check_replaceable(output)
    side = read_side_items(items, recipe.items) if items is not None else None
    chunks = plan_chunks(files, recipe.input)
    size = sum(file.bytes for file in files)
    report(f"reading {len(files)} {_plural(len(files), 'file')} ({size / 2**20:,.1f} MiB) in {len(chunks)} chunks")
    with atomic_directory(output, overwrite=overwrite) as directory:
        manifest = _Preparation(directory, recipe, identity, report).run(chunks, side)
    report(f"wrote {output}")
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
    elif output.exists() and not (output / MANIFEST).exists():
        raise ArtifactError(f"{output} exists and is no prepared set, so it is not overwritten; give another --output")


@dataclass(frozen=True, slots=True)
class _Log:
    """The staged log."""

    rows_in: int
    rows_kept: int
    time_range_us: tuple[int, int] | None


class _Preparation:
    """One run of `prepare`; its state is the drops so far and the step that is done."""

    def __init__(self, directory: Path, recipe: Recipe, identity: str, report: Reporter) -> None:
        self._directory = directory
        self._staging = directory / "staging"
        self._recipe = recipe
        self._identity = identity
        self._report = report
        self._drops = DropLog()
        self._step = 0

    def run(self, chunks: Sequence[LogChunk], side: pa.Table | None) -> PreparedManifest:
        plan, log, item_ids = self._stage(chunks)
        counts, reports = self._settle_rows(plan, len(item_ids))
        order = vocabulary_order(counts[0])
        self._check_left(log, sum(r.num_users for r in reports.values()), len(order))
        self._write_items(item_ids, order, counts[0], side)
        written = self._write_users(plan, reports, order, len(item_ids))
        shutil.rmtree(self._staging)
        self._drops.write_examples(self._directory / "drops")
        manifest = self._manifest(plan, log, counts, reports, written)
        write_prepared_manifest(self._directory, manifest, {w.info.file: w.digest for w in written})
        return manifest

    def _stage(self, chunks: Sequence[LogChunk]) -> tuple[PartitionPlan, _Log, pa.Array]:
        self._staging.mkdir()
        task = partial(_scatter, chunks, self._recipe, self._staging)
        by_chunk: dict[int, ChunkReport] = dict(run_tasks(task, len(chunks)))
        reports = [by_chunk[number] for number in range(len(chunks))]
        for chunk_report in reports:
            self._drops.merge(chunk_report.drops)
        ranges = [r.time_range_us for r in reports if r.time_range_us is not None]
        time_range = (min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None
        log = _Log(sum(r.rows_in for r in reports), sum(r.rows_kept for r in reports), time_range)
        self._report(f"read {log.rows_in:,} rows; {log.rows_kept:,} are good" + self._dropped_so_far())
        if log.rows_kept == 0:
            self._check_left(log, 0, 0)
        blocks = [block for r in reports for block in r.blocks]
        unit = min(r.time_unit_us for r in reports)
        plan = PartitionPlan(
            staging=self._staging,
            recipe=self._recipe,
            blocks=blocks,
            bucket_bounds=partition_bounds(_num_partitions(log.rows_in, self._recipe)),
            user_kind=merge_kinds([r.user_kind for r in reports if r.blocks]),
            time_unit_us=unit,
            cuts=self._cuts(log, blocks, unit),
        )
        item_kind = merge_kinds([r.item_kind for r in reports if r.blocks])
        return plan, log, merge_items(blocks, item_kind, self._staging)

    def _cuts(self, log: _Log, blocks: Sequence[str], unit: int) -> tuple[int, int] | None:
        split = self._recipe.split
        if split.method != "global_time" or log.time_range_us is None:
            return None

        def histogram(low: int, width: int, bins: int) -> Int64s:
            task = partial(_count_block_times, self._staging, blocks, unit, low, width, bins)
            return np.sum(list(run_tasks(task, len(blocks))), axis=0)

        if split.validation_from_s is not None and split.test_from_s is not None:
            fitted = (0, 0)
        else:
            first, last = (moment // unit for moment in log.time_range_us)
            fitted = cuts_from_fractions(histogram, (first, last), log.rows_kept, split)
        per_second = MICROSECONDS // unit
        given = (split.validation_from_s, split.test_from_s)
        cuts = [found if second is None else second * per_second for second, found in zip(given, fitted, strict=True)]
        return cuts[0], max(cuts)

    def _settle_rows(self, plan: PartitionPlan, num_items: int) -> tuple[Int64s, dict[int, StepReport]]:
        """Deduplicates, filters and splits; returns item counts int64[2, I] and the partitions' last reports."""
        rules = self._recipe.prepare
        is_filtered = rules.min_interactions_per_item > 1 or rules.min_interactions_per_user > 1
        is_core = rules.filter == "k_core"
        reports = self._run_step(partial(gather, is_last=not is_filtered), plan)
        counts = sum_item_counts(plan, 0, num_items)
        while is_filtered:
            before = sum(r.num_rows for r in reports.values())
            is_kept = counts[0] >= rules.min_interactions_per_item
            self._step += 1
            step = partial(filter_step, step=self._step, is_kept_item=is_kept, is_last=not is_core)
            reports = self._run_step(step, plan)
            counts = sum_item_counts(plan, self._step, num_items)
            is_filtered = is_core and sum(r.num_rows for r in reports.values()) < before
            self._remove_rows_before(plan)
        if is_core and self._step:
            self._step += 1
            reports = self._run_step(partial(label_step, step=self._step), plan)
            counts = sum_item_counts(plan, self._step, num_items)
        num_rows = sum(r.num_rows for r in reports.values())
        rounds = f" ({self._step} rounds of filters)" if is_core else ""
        self._report(f"{num_rows:,} interactions after deduplication and filters{rounds}" + self._dropped_so_far())
        return counts, reports

    def _run_step(self, step: Callable[[PartitionPlan, int], StepReport], plan: PartitionPlan) -> dict[int, StepReport]:
        num_partitions = len(plan.bucket_bounds) - 1
        reports = {r.partition: r for r in run_tasks(partial(step, plan), num_partitions)}
        for partition in range(num_partitions):
            self._drops.merge(reports[partition].drops)
        return reports

    def _remove_rows_before(self, plan: PartitionPlan) -> None:
        for path in plan.staging.glob(f"partition-*/rows-{self._step - 2}.arrow"):
            path.unlink()

    def _check_left(self, log: _Log, num_users: int, num_items: int) -> None:
        if num_users > 1 and num_items > 1:
            return
        left = (
            "no training interaction is left"
            if num_users == 0
            else f"only {num_users} {_plural(num_users, 'user')} and {num_items} {_plural(num_items, 'item')} are left"
        )
        why = f"of {log.rows_in:,} rows {self._drops.total:,} were dropped"
        if self._drops.total:
            why += f": {self._drops.describe()}"
        if num_users and not self._drops.total:
            why = f"the log has {log.rows_in:,} rows"
        error = EmptyDataError if num_users == 0 else DataError
        raise error(
            f"{left}: {why}; a recommender needs 2 users and 2 items: loosen [input] drop, [prepare] or [split]"
        )

    def _write_items(self, item_ids: pa.Array, order: Int64s, counts: Int64s, side: pa.Table | None) -> None:
        ids = item_ids.take(pa.array(order))
        columns = {"item_idx": pa.array(np.arange(len(order)), pa.int32()), "item_id": ids, "count": counts[order]}
        if side is not None:
            joined, num_missing = join_side_items(ids, side)
            columns.update(joined)
            self._report(
                f"side columns {', '.join(joined)}: {len(order) - num_missing:,} of {len(order):,} items have them"
            )
        pq.write_table(pa.table(columns), self._directory / ITEMS, compression="zstd", compression_level=1)

    def _write_users(
        self, plan: PartitionPlan, reports: dict[int, StepReport], order: Int64s, num_items: int
    ) -> list[WriteReport]:
        item_idx = np.full(num_items, -1, np.int32)
        item_idx[order] = np.arange(len(order), dtype=np.int32)
        firsts = np.concatenate([[0], np.cumsum([reports[p].num_users for p in range(len(reports))])])
        task = partial(_write, plan, self._step, item_idx, firsts, self._directory)
        written: dict[int, WriteReport] = dict(run_tasks(task, len(reports)))
        for partition in range(len(written)):
            self._drops.merge(written[partition].drops)
        return [written[partition] for partition in range(len(written))]

    def _manifest(
        self,
        plan: PartitionPlan,
        log: _Log,
        counts: Int64s,
        reports: dict[int, StepReport],
        written: Sequence[WriteReport],
    ) -> PreparedManifest:
        infos = tuple(w.info for w in written)
        training, validation, test = (
            sum(getattr(i, name) for i in infos) for name in ("num_training", "num_validation", "num_test")
        )
        kept = training + validation + test
        assert log.rows_in == kept + self._drops.total, (log.rows_in, kept, self._drops.counts)
        num_users, num_items = sum(i.num_users for i in infos), int(np.count_nonzero(counts[0]))
        self._report(
            f"{num_users:,} users, {num_items:,} items, {training:,} training, {validation:,} validation and "
            f"{test:,} test interactions" + self._dropped_so_far()
        )
        return PreparedManifest(
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            rows_in=log.rows_in,
            rows_kept=kept,
            rows_dropped=dict(sorted(self._drops.counts.items())),
            num_users=num_users,
            num_items=num_items,
            num_training=training,
            num_validation=validation,
            num_test=test,
            split=self._describe_split(plan, counts, reports, written),
            input_fingerprint=self._identity,
            recipe=self._recipe,
            partitions=infos,
        )

    def _describe_split(
        self,
        plan: PartitionPlan,
        counts: Int64s,
        reports: dict[int, StepReport],
        written: Sequence[WriteReport],
    ) -> dict[str, Any]:
        method = self._recipe.split.method
        is_time_cut = method == "global_time"
        filters = "training interactions" if is_time_cut else "all interactions, before the split"
        described: dict[str, Any] = {
            "method": method,
            "fitted_on": {"filters": filters, "vocabulary": "training interactions", "counts": "training interactions"},
            "num_users_with_validation": sum(w.num_users_with_validation for w in written),
            "num_users_with_test": sum(w.num_users_with_test for w in written),
            "num_users_not_in_training": sum(r.num_new_users for r in reports.values()),
            "num_items_not_in_training": int(np.count_nonzero((counts[0] == 0) & (counts[1] > 0))),
        }
        if plan.cuts is not None:
            per_second = MICROSECONDS // plan.time_unit_us
            described["validation_from_s"], described["test_from_s"] = (cut / per_second for cut in plan.cuts)
        return described

    def _dropped_so_far(self) -> str:
        return f"; dropped so far: {self._drops.describe()}" if self._drops.total else ""


def _num_partitions(num_rows: int, recipe: Recipe) -> int:
    """Returns the number of partitions, from the number of rows alone."""
    wanted = recipe.prepare.num_partitions or max(MIN_PARTITIONS, -(-num_rows // ROWS_PER_PARTITION))
    return min(wanted, NUM_BUCKETS)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"


def _scatter(chunks: Sequence[LogChunk], recipe: Recipe, staging: Path, number: int) -> tuple[int, ChunkReport]:
    return number, scatter_chunk(chunks[number], number, recipe.input, staging)


def _count_block_times(
    staging: Path, blocks: Sequence[str], unit: int, low: int, width: int, bins: int, number: int
) -> Int64s:
    from ray_recsys.core.scatter import read_arrow

    times = read_arrow(staging / blocks[number] / "rows.arrow")["time_us"].to_numpy()
    return count_times(times // unit, low, width, bins)


def _write(
    plan: PartitionPlan,
    step: int,
    item_idx: npt.NDArray[np.int32],
    firsts: Int64s,
    directory: Path,
    partition: int,
) -> tuple[int, WriteReport]:
    return partition, write_users(plan, partition, step, item_idx, int(firsts[partition]), directory)


__all__ = ["FileDigest", "UserRows", "prepare"]
