"""What makes a prepared set another one, how many partitions it has, and when too little is left."""

from typing import Any

import pytest

from ray_recsys.config import PrepareRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.preparing.checking import DropLog
from ray_recsys.core.preparing.ids import NUM_BUCKETS
from ray_recsys.core.preparing.log_files import LogFile
from ray_recsys.core.preparing.pipeline import fingerprint, num_partitions
from ray_recsys.core.preparing.result import check_left
from ray_recsys.errors import DataError, EmptyDataError

FILE = LogFile("log.csv", "csv", None, 10, "1")


def recipe_of(**sections: Any) -> Recipe:
    return parse_recipe(sections, "test")


@pytest.mark.parametrize(
    "recipe",
    [
        recipe_of(input={"user_column": "user"}),
        recipe_of(items={"title_column": "name"}),
        recipe_of(prepare={"filter": "k_core"}),
        recipe_of(split={"method": "global_time"}),
        recipe_of(split={"method": "random_per_user"}),
        recipe_of(split={"method": "random_per_user"}, seed=1),
    ],
)
def test_the_sections_that_prepare_reads_make_another_set(recipe: Recipe) -> None:
    known = {fingerprint([FILE], [], Recipe()), fingerprint([FILE], [], recipe)}
    assert len(known) == 2


def test_what_prepare_does_not_read_makes_no_other_set() -> None:
    same = [Recipe(), recipe_of(seed=7), recipe_of(train={"epochs": 9}), recipe_of(cluster={"num_workers": 2})]
    assert len({fingerprint([FILE], [], recipe) for recipe in same}) == 1
    random = [recipe_of(seed=seed, split={"method": "random_per_user"}) for seed in (1, 2)]
    assert len({fingerprint([FILE], [], recipe) for recipe in random}) == 2


def test_every_property_of_a_file_makes_another_set() -> None:
    others = [
        LogFile("other.csv", "csv", None, 10, "1"),
        LogFile("log.csv", "tsv", None, 10, "1"),
        LogFile("log.csv", "csv", None, 11, "1"),
        LogFile("log.csv", "csv", None, 10, "2"),
    ]
    prints = [fingerprint([file], [], Recipe()) for file in [FILE, *others]]
    prints += [
        fingerprint([FILE, FILE], [], Recipe()),
        fingerprint([FILE], [FILE], Recipe()),
        fingerprint([], [FILE], Recipe()),
    ]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("num_rows", "wanted", "expected"),
    [
        (0, None, 4),
        (4_000_000, None, 4),
        (4_000_001, None, 5),
        (10**12, None, NUM_BUCKETS),
        (10**12, 3, 3),
        (5, 10**6, NUM_BUCKETS),
    ],
)
def test_partitions_depend_on_the_recipe_and_the_rows_alone(num_rows: int, wanted: int | None, expected: int) -> None:
    assert num_partitions(num_rows, PrepareRecipe(num_partitions=wanted)) == expected


@pytest.mark.parametrize(
    ("num_users", "num_items", "error", "message"),
    [
        (
            0,
            5,
            EmptyDataError,
            r"no training interaction is left of 1,000 rows \(dropped: 7 rare_item\); give more data",
        ),
        (5, 0, EmptyDataError, "no training interaction is left"),
        (1, 1_234, DataError, r"only 1 user and 1,234 items are left of 1,000 rows \(dropped: 7 rare_item\)"),
        (1_234, 1, DataError, "only 1,234 users and 1 item are left"),
    ],
)
def test_too_little_is_left(num_users: int, num_items: int, error: type[DataError], message: str) -> None:
    drops = DropLog()
    drops.add("rare_item", 7)
    with pytest.raises(error, match=message):
        check_left(1_000, num_users, num_items, drops)
    check_left(1_000, 2, 2, drops)
    with pytest.raises(EmptyDataError, match="none dropped"):
        check_left(0, 0, 0, DropLog())
