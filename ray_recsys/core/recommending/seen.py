"""What each user has seen, as two memory-mapped arrays (CSR): a user's items lie together, in order of time.

Training, validation and test items are all seen: nothing that the user already has is recommended. This module does not
know how seen items are kept out of recommendations.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.histories import Histories
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.errors import IntegrityError

OFFSETS = "seen_offsets.npy"
ITEMS = "seen_items.npy"


@dataclass(frozen=True, slots=True)
class SeenItems:
    """`items[offsets[u]:offsets[u + 1]]` are the items of user u: offsets int64[U + 1], items int32."""

    offsets: Int64s
    items: Int32s

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps both files into memory.

        Raises:
            IntegrityError: They are not the two arrays of one set of users.
        """
        try:
            offsets = np.load(directory / OFFSETS, mmap_mode="r", allow_pickle=False)
            items = np.load(directory / ITEMS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{directory}: seen items cannot be read ({error})") from error
        if offsets.ndim != 1 or items.ndim != 1 or offsets[-1] != len(items):
            raise IntegrityError(f"{directory / OFFSETS} does not belong to {ITEMS}")
        return cls(offsets, items)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def of(self, user_idx: int) -> Int32s:
        """Returns the items of a user, oldest first."""
        items: Int32s = np.asarray(self.items[self.offsets[user_idx] : self.offsets[user_idx + 1]])
        return items


def write_seen(directory: Path, prepared: PreparedSet) -> int:
    """Writes both files from a prepared set, one partition in memory at a time; returns the number of interactions."""
    manifest = prepared.manifest
    total = manifest.num_training + manifest.num_validation + manifest.num_test
    offsets = np.lib.format.open_memmap(directory / OFFSETS, mode="w+", dtype=np.int64, shape=(manifest.num_users + 1,))
    # numpy cannot map an empty file: a prepared set has at least one interaction
    items = np.lib.format.open_memmap(directory / ITEMS, mode="w+", dtype=np.int32, shape=(total,))
    offsets[0] = 0
    written = 0
    for partition in range(len(manifest.partitions)):
        histories = prepared.read_partition(partition)
        lengths, values = seen_in_order(histories)
        first = histories.first_user_idx
        offsets[first + 1 : first + 1 + len(lengths)] = written + np.cumsum(lengths)
        items[written : written + len(values)] = values
        written += len(values)
    assert written == total, (written, total)
    offsets.flush()
    items.flush()
    return total


def seen_in_order(histories: Histories) -> tuple[Int64s, Int32s]:
    """Returns how many items each user has seen, int64[U], and the items, user after user, oldest first.

    Ties in time, and histories without times, keep the order training, validation, test.
    """
    parts = (histories.training, histories.validation, histories.test)
    rows = np.concatenate([part.rows() for part in parts])
    values = np.concatenate([part.item_idx for part in parts])
    times = [part.timestamp_s for part in parts if part.timestamp_s is not None]
    order = np.lexsort((np.concatenate(times), rows)) if len(times) == len(parts) else np.argsort(rows, kind="stable")
    return np.bincount(rows, minlength=histories.training.num_users).astype(np.int64), values[order].astype(np.int32)
