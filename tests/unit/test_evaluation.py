"""Evaluation against a reference that sorts Python lists; ties; protocols; what may be a candidate."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Float32s, Int64s, Integers
from ray_recsys.core.evaluation.baselines import Random
from ray_recsys.core.evaluation.candidates import Split, draw_unseen
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.evaluation.ranking import TieOrder, ranks_of
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.contract import DenseFactors, Scorer, UserFactors
from ray_recsys.core.models.popularity import popularity_of
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.errors import StageError
from tests.factories import make_prepared_set


class TableScorer:
    """Scores from a table, float32[U, I]."""

    def __init__(self, table: npt.ArrayLike) -> None:
        self.table = np.asarray(table, np.float32)

    def users(self, user_idx: Int64s) -> UserFactors:
        return DenseFactors(self.table[user_idx])

    def scores(self, users: UserFactors, item_idx: Integers | None = None) -> Float32s:
        assert isinstance(users, DenseFactors)
        return users.values.copy() if item_idx is None else np.take_along_axis(users.values, item_idx, axis=1)


def reference(table: Float32s, histories: Histories, split: Split, k: int, seed: int) -> dict[str, float]:
    """Full ranking with sorted lists; scores may be tied."""
    values: dict[str, list[float]] = {"Hit": [], "NDCG": [], "Recall": [], "Precision": [], "MAP": [], "MRR": []}
    for row in range(histories.training.num_users):
        user = histories.first_user_idx + row
        training, validation, test = (
            part.item_idx[part.offsets[row] : part.offsets[row + 1]].tolist()
            for part in (histories.training, histories.validation, histories.test)
        )
        held_out, seen = (test, training + validation) if split == "test" else (validation, training)
        if not held_out:
            continue
        order = TieOrder(seed, np.array([user]))
        unseen = [i for i in range(table.shape[1]) if i not in seen]
        keys = {i: int(order.keys(np.array([0]), np.array([i]))[0]) for i in unseen}
        ranked = sorted(unseen, key=lambda i: (-table[user, i], keys[i]))
        ranks = sorted(ranked.index(i) + 1 for i in held_out)
        best = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(ranks)) + 1))
        values["Hit"].append(float(ranks[0] <= k))
        values["NDCG"].append(sum(1 / math.log2(r + 1) for r in ranks if r <= k) / best)
        values["Recall"].append(sum(r <= k for r in ranks) / len(ranks))
        values["Precision"].append(sum(r <= k for r in ranks) / k)
        values["MAP"].append(sum((n + 1) / r for n, r in enumerate(ranks) if r <= k) / len(ranks))
        values["MRR"].append(1 / ranks[0])
    return {name if name == "MRR" else f"{name}@{k}": sum(v) / len(v) for name, v in values.items()}


def random_histories(rng: np.random.Generator, num_users: int, num_items: int, first_user_idx: int) -> Histories:
    """Users with 1..5 training and 0..3 validation and test items each, all different."""
    parts: list[list[Int64s]] = [[], [], []]
    for _ in range(num_users):
        items, cuts = rng.permutation(num_items), np.cumsum([rng.integers(1, 6), *rng.integers(0, 4, 2)])
        for part, chosen in zip(parts, np.split(items, cuts), strict=False):
            part.append(chosen)
    return Histories(first_user_idx, *(_interactions(part) for part in parts))


def _interactions(items: list[Int64s]) -> Interactions:
    offsets = np.cumsum([0, *map(len, items)])
    return Interactions(offsets, np.concatenate(items).astype(np.int32))


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("num_levels", [3, 1_000_000])
def test_full_ranking_equals_sorted_lists(split: Split, num_levels: int) -> None:
    rng = np.random.default_rng(1)
    histories = random_histories(rng, 40, 25, first_user_idx=10)
    table = rng.integers(0, num_levels, (50, 25)).astype(np.float32)
    recipe = EvaluateRecipe(ks=(4,), users_per_batch=7)
    sums = evaluate_users(TableScorer(table), histories, num_items=25, recipe=recipe, split=split, seed=3)
    assert sums.means() == pytest.approx(reference(table, histories, split, 4, seed=3), abs=1e-9)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("eval") / "set", num_users=3000, num_items=60, num_partitions=4)


@pytest.mark.parametrize(("protocol", "expected"), [("full", 5 / 50.5), ("sampled", 5 / 21)])
def test_a_constant_scorer_hits_as_often_as_chance(prepared: PreparedSet, protocol: str, expected: float) -> None:
    recipe = EvaluateRecipe.model_validate({"protocol": protocol, "num_sampled": 20, "ks": (5,)})
    table = np.zeros((3000, 60))
    means = _sums(TableScorer(table), prepared, recipe).means()
    assert means["Hit@5"] == pytest.approx(expected, abs=0.025)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_batches_partitions_and_order_of_users_change_nothing(prepared: PreparedSet, protocol: str) -> None:
    recipe = EvaluateRecipe.model_validate({"protocol": protocol, "num_sampled": 20})
    scorer = Random(60, seed=1)
    whole = _sums(scorer, prepared, recipe)
    small = _sums(scorer, prepared, recipe.model_copy(update={"users_per_batch": 100}))
    assert whole == small
    assert whole.num_users == whole.num_held_out == 3000
    halves = []
    for wanted in (0, 1):
        for partition in range(4):
            histories = prepared.read_partition(partition)
            half = _with_test_of(histories, histories.user_idx % 2 == wanted)
            halves.append(evaluate_users(scorer, half, num_items=60, recipe=recipe, split="test", seed=9))
    assert MetricSums.total(halves) == whole


def _with_test_of(histories: Histories, is_chosen: npt.NDArray[np.bool_]) -> Histories:
    lengths = np.where(is_chosen, histories.test.lengths, 0)
    items = histories.test.item_idx[np.repeat(is_chosen, histories.test.lengths)]
    return replace(histories, test=Interactions(np.concatenate([[0], np.cumsum(lengths)]), items))


def test_popularity_beats_random_where_popular_items_are_drawn_more_often(prepared: PreparedSet) -> None:
    recipe = EvaluateRecipe(ks=(10,))
    popular = _sums(popularity_of(prepared.item_counts(), 3000), prepared, recipe).means()["NDCG@10"]
    random = _sums(Random(60, seed=1), prepared, recipe).means()["NDCG@10"]
    assert popular > 1.5 * random


def _sums(scorer: Scorer, prepared: PreparedSet, recipe: EvaluateRecipe) -> MetricSums:
    partitions = map(prepared.read_partition, range(len(prepared.manifest.partitions)))
    num_items = prepared.manifest.num_items
    return MetricSums.total(
        evaluate_users(scorer, part, num_items=num_items, recipe=recipe, split="test", seed=9) for part in partitions
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_a_score_that_is_no_number_fails_and_names_the_user(tmp_path: Path, value: float, protocol: str) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=20, num_items=30)
    table = np.zeros((20, 30))
    table[13] = value
    recipe = EvaluateRecipe.model_validate({"protocol": protocol})
    with pytest.raises(StageError, match="user index 13"):
        _sums(TableScorer(table), prepared, recipe)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 12))
def test_rank_is_the_position_when_sorted_by_score_and_tie_key(seed: int, num_candidates: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, (4, num_candidates)).astype(np.float32)
    own = rng.integers(0, num_candidates, 4)
    items = np.array([rng.permutation(100)[:num_candidates] for _ in range(4)])
    order = TieOrder(seed, rng.integers(0, 10, 4), items)
    expected = []
    for row in range(4):
        columns = np.arange(num_candidates)
        keys = order.keys(np.full(num_candidates, row), columns)
        ranked = sorted(columns.tolist(), key=lambda c: (-scores[row, c], keys[c]))
        expected.append(ranked.index(own[row]) + 1)
    assert ranks_of(scores, own, order).tolist() == expected


def test_drawn_items_are_distinct_unseen_uniform_and_the_same_in_any_company() -> None:
    rng = np.random.default_rng(0)
    seen = np.array(rng.permutation(40)[:20])
    num_users = 4000
    rows = np.arange(num_users)
    excluded = ExcludedItems.from_pairs(40, num_users, np.repeat(rows, 20), np.tile(seen, num_users).astype(np.int32))
    users, own = rows + 7, np.full(num_users, seen[0])
    drawn, is_drawn = draw_unseen(users, own, excluded, rows, num_drawn=5, seed=1)
    assert is_drawn.all()
    assert not np.isin(drawn, seen).any()
    assert all(len(set(items)) == 5 for items in drawn.tolist())
    counts = np.bincount(drawn.reshape(-1), minlength=40)[np.setdiff1d(np.arange(40), seen)]
    expected = num_users * 5 / 20
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()
    alone, _ = draw_unseen(users[9:10], own[9:10], excluded, rows[9:10], num_drawn=5, seed=1)
    assert (alone[0] == drawn[9]).all()


def test_a_user_with_few_unseen_items_gets_just_those() -> None:
    excluded = ExcludedItems.from_pairs(6, 1, np.zeros(4, np.int64), np.array([0, 1, 3, 5], np.int32))
    drawn, is_drawn = draw_unseen(np.array([0]), np.array([5]), excluded, np.array([0]), num_drawn=4, seed=1)
    assert sorted(drawn[is_drawn].tolist()) == [2, 4]


def test_rating_errors_are_those_of_the_held_out_ratings() -> None:
    histories = Histories(
        4,
        Interactions(np.array([0, 1, 2]), np.array([0, 1], np.int32)),
        Interactions(np.array([0, 0, 0]), np.zeros(0, np.int32)),
        Interactions(np.array([0, 2, 3]), np.array([2, 3, 0], np.int32), rating=np.array([4.0, 1.0, 3.0], np.float32)),
    )
    table = np.zeros((6, 5))
    table[4, 2:4], table[5, 0] = (3.5, 2.0), 5.0
    for protocol in ("full", "sampled"):
        recipe = EvaluateRecipe.model_validate({"protocol": protocol, "num_sampled": 2, "ks": (1,)})
        sums = evaluate_users(
            TableScorer(table), histories, num_items=5, recipe=recipe, split="test", seed=1, has_ratings=True
        )
        errors = np.array([0.5, 1.0, 2.0])
        assert sums.means()["MAE"] == pytest.approx(errors.mean(), abs=1e-6)
        assert sums.means()["RMSE"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-6)
        spread = np.sqrt((errors**2).var() / 3) / (2 * sums.means()["RMSE"])
        assert sums.standard_errors()["RMSE"] == pytest.approx(spread, abs=1e-5)
        assert sums.standard_errors()["MAE"] == pytest.approx(errors.std() / np.sqrt(3), abs=1e-5)
