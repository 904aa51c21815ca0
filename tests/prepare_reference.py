"""What `prepare` must give, in plain Python over lists of rows: slow, short, and written from the rules alone."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.counter_random import splitmix64
from ray_recsys.core.preparing.ids import hash_ids

Row = tuple[str, str, int, float]  # user, item, second, rating
Kept = tuple[str, int, float, int]  # item, second, rating, repetition


@dataclass
class Expected:
    """Items in order of index with their counts; histories by user: [training, validation, test]."""

    items: list[tuple[str, int]] = field(default_factory=list)
    users: dict[str, list[list[Kept]]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)


def reference_prepare(rows: list[Row], recipe: Recipe) -> Expected:
    """Returns the prepared set of good rows."""
    expected = Expected()
    cuts = _cuts(rows, recipe)
    pairs = [kept for group in _pairs(rows).values() for kept in _deduplicate(group, recipe, cuts, expected.dropped)]
    minimum = recipe.prepare.min_rating
    low = [p for p in pairs if minimum is not None and p[3] < minimum]
    expected.dropped["below_min_rating"] += len(low)
    pairs = _filter([p for p in pairs if p not in low], recipe, cuts, expected.dropped)
    histories = _split(pairs, recipe, cuts)
    counts = Counter(kept[0] for parts in histories.values() for kept in parts[0])
    for user, parts in histories.items():
        for held_out in parts[1:]:
            for kept in list(held_out):
                if not parts[0] or not counts[kept[0]]:
                    held_out.remove(kept)
                    expected.dropped[f"held_out_{'item' if parts[0] else 'user'}_not_in_training"] += 1
        if parts[0]:
            expected.users[user] = parts
    expected.items = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    expected.dropped = +expected.dropped
    return expected


def _pairs(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    pairs = defaultdict(list)
    for row in rows:
        pairs[row[:2]].append(row)
    return pairs


def _cuts(rows: list[Row], recipe: Recipe) -> tuple[int, int] | None:
    if recipe.split.method != "global_time":
        return None
    times = sorted(row[2] for row in rows)
    num_test = round(len(rows) * recipe.split.test_fraction)
    num_validation = round(len(rows) * recipe.split.validation_fraction)
    wanted = (len(rows) - num_test - num_validation, len(rows) - num_test)
    return tuple(next(t for t in range(times[0] + 1, times[-1] + 2) if sum(s < t for s in times) >= w) for w in wanted)  # type: ignore[return-value]  # two of them


def _period(second: int, cuts: tuple[int, int] | None) -> int:
    return 0 if cuts is None else sum(second >= cut for cut in cuts)


def _deduplicate(
    group: list[Row], recipe: Recipe, cuts: tuple[int, int] | None, dropped: Counter[str]
) -> list[tuple[str, str, int, float, int]]:
    rule = recipe.prepare.deduplicate
    first_period = min(_period(row[2], cuts) for row in group)
    here = [row for row in group if _period(row[2], cuts) == first_period]
    dropped["repeated_after_cut"] += len(group) - len(here)
    dropped["repeated" if rule == "count" else "duplicate"] += len(here) - 1
    chosen = {
        "first": lambda: min(here, key=lambda row: (row[2], -row[3])),
        "last": lambda: max(here, key=lambda row: (row[2], row[3])),
        "highest_rating": lambda: max(here, key=lambda row: (row[3], row[2])),
        "count": lambda: max(here, key=lambda row: (row[2], row[3])),
    }[rule]()
    return [(*chosen, len(here) if rule == "count" else 1)]


def _filter(
    pairs: list[tuple[str, str, int, float, int]],
    recipe: Recipe,
    cuts: tuple[int, int] | None,
    dropped: Counter[str],
) -> list[tuple[str, str, int, float, int]]:
    rules = recipe.prepare
    fitted = [p for p in pairs if _period(p[2], cuts) == 0]
    held_out = [p for p in pairs if _period(p[2], cuts) > 0]
    while True:
        before = len(fitted)
        for column, minimum, reason in (
            (1, rules.min_interactions_per_item, "rare_item"),
            (0, rules.min_interactions_per_user, "rare_user"),
        ):
            counts = Counter(p[column] for p in fitted)
            kept = [p for p in fitted if counts[p[column]] >= minimum]
            dropped[reason] += len(fitted) - len(kept)
            fitted = kept
        if rules.filter == "once" or len(fitted) == before:
            return fitted + held_out


def _split(
    pairs: list[tuple[str, str, int, float, int]], recipe: Recipe, cuts: tuple[int, int] | None
) -> dict[str, list[list[Kept]]]:
    by_user: dict[str, list[Kept]] = defaultdict(list)
    for user, *kept in sorted(pairs, key=lambda p: (p[0], p[2], p[1])):
        by_user[user].append(tuple(kept))  # type: ignore[arg-type]  # of four
    histories = {}
    for user, history in by_user.items():
        labels = _labels(user, history, recipe, cuts)
        histories[user] = [
            [kept for kept, label in zip(history, labels, strict=True) if label == part] for part in range(3)
        ]
    return histories


def _labels(user: str, history: list[Kept], recipe: Recipe, cuts: tuple[int, int] | None) -> list[int]:
    length = len(history)
    if recipe.split.method == "leave_one_out":
        return [0] * length if length < 3 else [0] * (length - 2) + [1, 2]
    if recipe.split.method == "global_time":
        return [_period(kept[1], cuts) for kept in history]
    seed = splitmix64(np.array([recipe.seed], np.uint64))
    of_user = splitmix64(hash_ids(pa.array([user])) ^ seed)
    draws = [int(splitmix64(of_user ^ hash_ids(pa.array([kept[0]])))[0]) for kept in history]
    num_test = min(_half_up(length, recipe.split.test_fraction), length - 1)
    num_validation = min(_half_up(length, recipe.split.validation_fraction), length - 1 - num_test)
    ranks = np.argsort(np.argsort(np.array(draws, np.uint64)))
    return [2 if rank < num_test else 1 if rank < num_test + num_validation else 0 for rank in ranks]


def _half_up(length: int, fraction: float) -> int:
    return int(Fraction(length * fraction) + Fraction(1, 2))
