"""The prepared set: partitions of users, the item table and a manifest, in a directory or in an object store.

    manifest.json            counts, drops, partitions, split, recipe; size and sha256 of every file
    items.parquet            item_idx, item_id, count (training interactions), title?, category?; row = item_idx
    users/part-00000.parquet one row per user (see `histories`); the user indices of a partition are consecutive
    drops/<reason>.jsonl     up to 100 examples of the rows dropped for a reason

Items are sorted by descending count, ties by id, so that index 0 is the most popular item.
"""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import (
    FileDigest,
    digest_file,
    local_copy,
    parse_manifest,
    read_manifest,
    verify_file,
    write_manifest,
)
from ray_recsys.core.histories import Histories, to_table
from ray_recsys.errors import IntegrityError
from ray_recsys.storage.cache import fetch
from ray_recsys.storage.files import written_file
from ray_recsys.storage.location import Location, LocationLike

KIND = "prepared"
SCHEMA_VERSION = 2
"""2: the recipe in the manifest has its cluster keys in [cluster] and its loss weights in [model]."""
ITEMS = "items.parquet"


class PartitionInfo(BaseModel):
    """A partition's file and the counts of its content."""

    model_config = ConfigDict(frozen=True)

    file: str
    first_user_idx: int
    num_users: int
    num_training: int
    num_validation: int
    num_test: int


class PreparedManifest(BaseModel):
    """Content of a prepared set's manifest; rows_in == rows_kept + sum(rows_dropped.values())."""

    model_config = ConfigDict(frozen=True)

    created_at: str
    rows_in: int
    rows_kept: int
    """Rows of the log that became training, validation or test interactions."""
    rows_dropped: dict[str, int]
    num_users: int
    num_items: int
    num_training: int
    num_validation: int
    num_test: int
    split: dict[str, Any]
    """Method, cut-offs, what was fitted on which interactions, and how many users and items have nothing held out."""
    input_fingerprint: str
    """Digest of the input files and of the recipe sections that prepare reads: if equal, no rerun is needed."""
    recipe: Recipe
    partitions: tuple[PartitionInfo, ...]


@dataclass(frozen=True, slots=True)
class PreparedSet:
    """An opened prepared set whose manifest has been checked; picklable, and readable on any node.

    Files of a remote set are read through the node's cache, which verifies them.
    """

    location: Location
    manifest: PreparedManifest
    files: Mapping[str, Mapping[str, Any]]
    parts: str = ""
    """Folder inside `location` that has the files; see `artifact_writer.draft`."""
    includes_held_out: bool = False
    """Whether held-out interactions count as training; see `with_held_out`."""

    @classmethod
    def open(cls, path: LocationLike) -> Self:
        """Opens a prepared set after checking its manifest and local files' sizes; `verify` checks their content.

        Raises:
            ArtifactError: Not a prepared set, of another schema version, or damaged.
        """
        location = Location.of(path)
        body = read_manifest(location, kind=KIND, schema_version=SCHEMA_VERSION)
        files, parts = body.pop("files"), body.pop("parts", "")
        manifest = parse_manifest(PreparedManifest, body, location)
        for name in (ITEMS, *(partition.file for partition in manifest.partitions)):
            if name not in files:
                raise IntegrityError(f"{location}: {name} is not listed in its manifest", remedy="prepare it again")
        return cls(location, manifest, files, parts)

    @property
    def path(self) -> Path:
        """The directory of a local set."""
        return Path(self.location / self.parts)

    def verify(self, name: str | None = None) -> None:
        """Checks the content of one file against the manifest, or of all files of a local set in parallel.

        The files of a remote set are checked when they are read.

        Raises:
            IntegrityError: A file is missing or was changed.
        """
        if name is not None:
            local_copy(self.location / self.parts, {name: self.files[name]})
        elif self.location.is_local:
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
                for _ in threads.map(self.verify, sorted(self.files)):
                    pass

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """Yields the path of a file on this node's disk, where it stays during the block.

        Its content is checked when this process first reads it; a remote file's, when it reaches the node.

        Raises:
            IntegrityError: It is missing or was changed.
        """
        if self.location.is_local:
            entry = self.files[name]
            _verify_once(self.path, name, int(entry["bytes"]), str(entry["sha256"]))
        copy = fetch(self.location / self.parts, {name: self.files[name]})
        yield copy.path / name

    def with_held_out(self) -> Self:
        """Returns the same set with every interaction in the training and nothing held out, for a refit."""
        partitions = tuple(
            info.model_copy(
                update={
                    "num_training": info.num_training + info.num_validation + info.num_test,
                    "num_validation": 0,
                    "num_test": 0,
                }
            )
            for info in self.manifest.partitions
        )
        total = self.manifest.num_training + self.manifest.num_validation + self.manifest.num_test
        counts = {"num_training": total, "num_validation": 0, "num_test": 0, "partitions": partitions}
        return replace(self, manifest=self.manifest.model_copy(update=counts), includes_held_out=True)

    def partitions_of(self, users: range) -> list[int]:
        """Returns the partitions that have some of the users."""
        infos = enumerate(self.manifest.partitions)
        return [
            n
            for n, info in infos
            if info.first_user_idx < users.stop and info.first_user_idx + info.num_users > users.start
        ]

    def read_partition(self, partition: int) -> Histories:
        """Returns the histories of a partition."""
        with self.on_disk(self.manifest.partitions[partition].file) as path:
            histories = Histories.from_table(pq.read_table(path))
        return histories.with_held_out() if self.includes_held_out else histories

    def read_columns(self, partition: int, columns: Sequence[str]) -> pa.Table:
        """Returns the given columns of a partition, without those that it lacks."""
        if self.includes_held_out:
            histories = self.read_partition(partition)
            table = to_table(histories, pa.nulls(histories.training.num_users))
            return table.select([column for column in columns if column in table.column_names])
        with self.on_disk(self.manifest.partitions[partition].file) as path, pq.ParquetFile(path) as file:
            present = set(file.schema_arrow.names)
            return file.read(columns=[column for column in columns if column in present])

    def read_user_ids(self, partition: int) -> pa.ChunkedArray:
        """Returns the user ids of a partition, in order of user_idx."""
        return self.read_columns(partition, ["user_id"])["user_id"]

    def read_items(self) -> pa.Table:
        """Returns the item table; row i is the item with index i."""
        with self.on_disk(ITEMS) as path:
            return pq.read_table(path)

    def item_counts(self) -> Int64s:
        """Returns each item's number of training interactions, int64[I]; descending, unless held-out ones count."""
        if self.includes_held_out:
            total = np.zeros(self.manifest.num_items, np.int64)
            for partition in range(len(self.manifest.partitions)):
                total += np.bincount(self.read_partition(partition).training.item_idx, minlength=len(total))
            return total
        counts: Int64s = self.read_items()["count"].to_numpy()
        return counts


@functools.cache
def _verify_once(directory: Path, name: str, num_bytes: int, sha256: str) -> None:
    verify_file(directory, name, {"bytes": num_bytes, "sha256": sha256})


def write_partition(
    directory: LocationLike, partition: int, histories: Histories, user_ids: pa.Array
) -> tuple[PartitionInfo, FileDigest]:
    """Writes a partition's file into an unfinished prepared set; returns its manifest entry and digest."""
    name = f"users/part-{partition:05d}.parquet"
    table = to_table(histories, user_ids)
    # Times ascend within a user: deltas are smaller than a dictionary, and twice as fast to write and to read.
    ascending = [f"{name}.list.element" for name in table.column_names if name.endswith("timestamp_s")]
    encodings = dict.fromkeys(ascending, "DELTA_BINARY_PACKED")
    with written_file(Location.of(directory) / name, durable=False) as path:
        pq.write_table(
            table, path, compression="zstd", compression_level=1, use_dictionary=False, column_encoding=encodings
        )
        digest = digest_file(path)
    info = PartitionInfo(
        file=name,
        first_user_idx=histories.first_user_idx,
        num_users=histories.training.num_users,
        num_training=len(histories.training.item_idx),
        num_validation=len(histories.validation.item_idx),
        num_test=len(histories.test.item_idx),
    )
    return info, digest


def write_prepared_manifest(
    directory: LocationLike, manifest: PreparedManifest, digests: Mapping[str, FileDigest]
) -> None:
    """Writes the manifest of an unfinished prepared set; `digests` are those known already, by relative path."""
    body = manifest.model_dump(mode="json")
    write_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION, body=body, digests=digests)
