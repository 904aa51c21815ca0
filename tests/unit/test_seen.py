"""Seen items keep the order of time, and each its own rating."""

from pathlib import Path

import numpy as np
import pytest

from ray_recsys.core.recommending import seen
from ray_recsys.core.recommending.seen import SeenItems, write_seen
from ray_recsys.errors import IntegrityError
from tests.factories import make_prepared_set


def test_ratings_follow_their_items_over_all_partitions(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared", has_ratings=True, num_partitions=4)
    write_seen(tmp_path, prepared)
    found = SeenItems.open(tmp_path)
    num_checked = 0
    for partition in range(4):
        histories = prepared.read_partition(partition)
        for row, user_idx in enumerate(histories.user_idx.tolist()):
            parts = (histories.training, histories.validation, histories.test)
            rows = [slice(part.offsets[row], part.offsets[row + 1]) for part in parts]
            expected = np.concatenate([part.item_idx[one] for part, one in zip(parts, rows, strict=True)])
            ratings = [part.rating[one] for part, one in zip(parts, rows, strict=True) if part.rating is not None]
            np.testing.assert_array_equal(found.of(user_idx), expected)
            np.testing.assert_array_equal(found.ratings_of(user_idx), np.concatenate(ratings))
            num_checked += len(expected)
    assert num_checked == prepared.manifest.rows_kept


def test_without_ratings_there_is_no_file_of_them(tmp_path: Path) -> None:
    write_seen(tmp_path, make_prepared_set(tmp_path / "prepared"))
    assert not (tmp_path / seen.RATINGS).exists()
    assert SeenItems.open(tmp_path).ratings_of(0) is None


def test_an_empty_partition_changes_nothing(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared", num_users=2, num_partitions=4, has_ratings=True)
    total = write_seen(tmp_path, prepared)
    found = SeenItems.open(tmp_path)
    assert (found.num_users, int(found.offsets[0]), int(found.offsets[-1])) == (2, 0, total)


@pytest.mark.parametrize("name", [seen.ITEMS, seen.RATINGS])
def test_arrays_of_different_lengths_are_refused(tmp_path: Path, name: str) -> None:
    write_seen(tmp_path, make_prepared_set(tmp_path / "prepared", has_ratings=True))
    np.save(tmp_path / name, np.load(tmp_path / name)[:-1])
    with pytest.raises(IntegrityError, match=name):
        SeenItems.open(tmp_path)
