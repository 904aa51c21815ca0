"""Seen items of each user, as memory-mapped arrays (CSR): a user's items lie together, in order of time.

Training, validation and test items are all seen: nothing that the user already has is recommended.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.errors import IntegrityError

OFFSETS = "seen_offsets.npy"
ITEMS = "seen_items.npy"
RATINGS = "seen_ratings.npy"


@dataclass(frozen=True, slots=True)
class SeenItems:
    """`items[offsets[u]:offsets[u + 1]]` are the items of user u: offsets int64[U + 1], items int32.

    `ratings` float32, aligned with `items`; None where the log has no ratings.
    """

    offsets: Int64s
    items: Int32s
    ratings: Float32s | None = None

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps the files into memory.

        Raises:
            IntegrityError: They do not hold the arrays of one set of users.
        """
        try:
            offsets = _mapped(directory / OFFSETS)
            items = _mapped(directory / ITEMS)
            has_ratings = (directory / RATINGS).exists()
            ratings = _mapped(directory / RATINGS) if has_ratings else None
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{directory}: seen items cannot be read ({error})") from error
        if offsets.ndim != 1 or items.ndim != 1 or offsets[-1] != len(items):
            raise IntegrityError(f"{directory / OFFSETS} does not belong to {ITEMS}")
        if ratings is not None and ratings.shape != items.shape:
            raise IntegrityError(f"{directory / RATINGS} does not belong to {ITEMS}")
        return cls(offsets, items, ratings)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def of(self, user_idx: int) -> Int32s:
        """Returns the items of a user, oldest first."""
        items: Int32s = np.asarray(self.items[self._interactions(user_idx)])
        return items

    def ratings_of(self, user_idx: int) -> Float32s | None:
        """Returns the user's ratings of the same items; None where the log has no ratings."""
        if self.ratings is None:
            return None
        ratings: Float32s = np.asarray(self.ratings[self._interactions(user_idx)])
        return ratings

    def _interactions(self, user_idx: int) -> slice:
        return slice(int(self.offsets[user_idx]), int(self.offsets[user_idx + 1]))


def _mapped(path: Path) -> npt.NDArray[Any]:
    """Maps a file; as a plain array, whose slices are quicker to make than numpy's memmap's."""
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return array


def write_seen(directory: Path, prepared: PreparedSet) -> int:
    """Writes the files from a prepared set, one partition in memory at a time; returns the number of interactions."""
    manifest = prepared.manifest
    total = manifest.num_training + manifest.num_validation + manifest.num_test
    # numpy cannot map an empty file: a prepared set has at least one interaction
    offsets = _new_array(directory / OFFSETS, np.int64, manifest.num_users + 1)
    items = _new_array(directory / ITEMS, np.int32, total)
    ratings: np.memmap[Any, np.dtype[Any]] | None = None
    offsets[0] = 0
    written = 0
    for partition in range(len(manifest.partitions)):
        histories = prepared.read_partition(partition)
        seen = histories.all_interactions()
        first, stop = histories.first_user_idx + 1, written + len(seen.item_idx)
        offsets[first : first + seen.num_users] = written + seen.offsets[1:]
        items[written:stop] = seen.item_idx
        if seen.rating is not None:
            if ratings is None:
                ratings = _new_array(directory / RATINGS, np.float32, total)
            ratings[written:stop] = seen.rating
        written = stop
    assert written == total, (written, total)
    for array in (offsets, items, ratings):
        if array is not None:
            array.flush()
    return total


def _new_array(path: Path, dtype: npt.DTypeLike, length: int) -> "np.memmap[Any, np.dtype[Any]]":
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
