"""Sorting, deduplication and filters against brute force over tuples, whatever the order of the rows."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.preparing.rows import (
    TRAINING,
    UserRows,
    deduplicate,
    filter_rows,
    in_time_order,
    sort_columns,
)

Tuple = tuple[int, int, int, float, int]  # user, item, time, rating, label
RULES = ("first", "last", "highest_rating", "count")
ROWS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 4),
        st.integers(-(2**40), 2**40) | st.integers(0, 3),
        st.sampled_from([-1.0, 0.0, 2.5, 5.0]),
        st.integers(0, 2),
    ),
    max_size=40,
)
INT64S = st.integers(-(2**63), 2**63 - 1)


def rows_of(tuples: list[Tuple], *, is_labelled: bool) -> UserRows:
    user, item, _, rating, label = np.array(tuples, np.float64).reshape(-1, 5).T
    return UserRows(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time=np.array([row[2] for row in tuples], np.int64),
        rating=rating.astype(np.float32),
        label=label.astype(np.int8) if is_labelled else None,
    )


def tuples_of(rows: UserRows, *names: str) -> list[tuple[Any, ...]]:
    columns = rows.columns()
    return list(zip(*(columns[name].tolist() for name in names), strict=True))


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.tuples(*[INT64S] * width), min_size=1, max_size=30)))
def test_sorted_like_tuples_whatever_the_width(tuples: list[tuple[int, ...]]) -> None:
    columns = list(np.array(tuples, np.int64).T)
    assert list(zip(*(c.tolist() for c in sort_columns(columns)), strict=True)) == sorted(tuples)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5), st.just(7), st.integers(0, 2**50)), max_size=30))
def test_sorted_like_tuples_in_one_word_and_more(tuples: list[tuple[int, ...]]) -> None:
    columns = list(np.array(tuples, np.int64).reshape(len(tuples), 4).T)
    assert list(zip(*(c.tolist() for c in sort_columns(columns)), strict=True)) == sorted(tuples)


def brute_force(tuples: list[Tuple], rule: str, *, is_labelled: bool) -> tuple[list[Any], Counter[str]]:
    groups = defaultdict(list)
    for row in tuples:
        groups[row[:2]].append(row)
    kept, dropped = [], Counter[str]()
    for (user, item), group in sorted(groups.items()):
        period = min(row[4] for row in group) if is_labelled else 0
        here = [row for row in group if not is_labelled or row[4] == period]
        dropped["repeated_after_cut"] += len(group) - len(here)
        dropped["repeated" if rule == "count" else "duplicate"] += len(here) - 1
        if rule == "first":
            chosen = min(here, key=lambda row: (row[2], -row[3]))
        elif rule == "highest_rating":
            chosen = max(here, key=lambda row: (row[3], row[2]))
        else:
            chosen = max(here, key=lambda row: (row[2], row[3]))
        kept.append((user, item, chosen[2], chosen[3], *((len(here),) if rule == "count" else ())))
    return kept, +dropped


@pytest.mark.parametrize("is_labelled", [False, True])
@pytest.mark.parametrize("rule", RULES)
@given(ROWS, st.randoms())
def test_deduplication(rule: Any, is_labelled: bool, tuples: list[Tuple], random: Any) -> None:
    kept, dropped = deduplicate(rows_of(tuples, is_labelled=is_labelled), rule)
    names = ("user", "item", "time", "rating", *(("repetition",) if rule == "count" else ()))
    expected, expected_drops = brute_force(tuples, rule, is_labelled=is_labelled)
    assert tuples_of(kept, *names) == expected
    assert {reason: len(rows) for reason, rows in dropped.items()} == expected_drops
    shuffled = rows_of(random.sample(tuples, len(tuples)), is_labelled=is_labelled)
    assert tuples_of(deduplicate(shuffled, rule).rows, *names) == expected


def test_the_two_zeros_are_one_rating() -> None:
    rows = UserRows(np.zeros(2, np.int32), np.zeros(2, np.int32), np.array([2, 1]), np.array([-0.0, 0.0], np.float32))
    assert deduplicate(rows, "highest_rating").rows.time is not None
    assert tuples_of(deduplicate(rows, "highest_rating").rows, "time", "rating") == [(2, 0.0)]


@given(ROWS)
def test_time_order(tuples: list[Tuple]) -> None:
    kept = deduplicate(rows_of(tuples, is_labelled=False), "last").rows
    found = tuples_of(in_time_order(kept), "user", "time", "item")
    assert found == sorted(tuples_of(kept, "user", "time", "item"))


@pytest.mark.parametrize("is_labelled", [False, True])
@given(ROWS, st.sets(st.integers(0, 4)), st.integers(1, 4))
def test_filters(is_labelled: bool, tuples: list[Tuple], kept_items: set[int], minimum: int) -> None:
    rows = deduplicate(rows_of(tuples, is_labelled=is_labelled), "last").rows
    names = ("user", "item", "label") if is_labelled else ("user", "item")
    given_rows = tuples_of(rows, *names)
    is_kept_item = np.isin(np.arange(5), sorted(kept_items))
    kept, dropped = filter_rows(rows, 4, is_kept_item, minimum)

    def is_counted(row: tuple[Any, ...]) -> bool:
        return not is_labelled or row[2] == TRAINING

    per_user = Counter(row[0] for row in given_rows if is_counted(row) and row[1] in kept_items)
    rare_items = [row for row in given_rows if is_counted(row) and row[1] not in kept_items]
    rare_users = [row for row in given_rows if is_counted(row) and row[1] in kept_items and per_user[row[0]] < minimum]
    assert tuples_of(kept, *names) == [row for row in given_rows if row not in [*rare_items, *rare_users]]
    found = {reason: tuples_of(of_reason, *names) for reason, of_reason in dropped.items()}
    assert found == {reason: of for reason, of in (("rare_item", rare_items), ("rare_user", rare_users)) if of}


@given(ROWS, st.sampled_from(RULES))
def test_rows_travel_in_small_types(tuples: list[Tuple], rule: Any) -> None:
    rows = deduplicate(rows_of(tuples, is_labelled=True), rule).rows
    stored = rows.stored()
    assert stored.user.itemsize == stored.item.itemsize == 4
    names = list(rows.columns())
    assert tuples_of(stored, *names) == tuples_of(rows, *names)
    assert stored.is_training().tolist() == [label == TRAINING for (label,) in tuples_of(rows, "label")]
