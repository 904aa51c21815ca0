"""Metrics against hand-computed values; sums against any spread of users."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.metrics import (
    RankedLists,
    average_precision,
    hit,
    ndcg,
    precision,
    recall,
    reciprocal_rank,
    values_by_user,
)

# One list with held-out items at ranks 2 and 7, one with a single one at rank 1, one at rank 11.
LISTS = RankedLists(np.array([7, 2, 1, 11]), np.array([0, 0, 1, 2]), np.array([0, 1, 2]))


def test_hit_recall_and_reciprocal_rank_by_hand() -> None:
    assert hit(LISTS, 1).tolist() == [0, 1, 0]
    assert hit(LISTS, 2).tolist() == [1, 1, 0]
    assert recall(LISTS, 5).tolist() == [0.5, 1, 0]
    assert recall(LISTS, 11).tolist() == [1, 1, 1]
    assert reciprocal_rank(LISTS).tolist() == [1 / 2, 1, 1 / 11]


def test_ndcg_by_hand_has_an_ideal_of_at_most_k_items() -> None:
    first = (1 / math.log2(3)) / (1 / math.log2(2) + 1 / math.log2(3))
    assert ndcg(LISTS, 5) == pytest.approx([first, 1, 0])
    assert ndcg(LISTS, 1).tolist() == [0, 1, 0]
    best = RankedLists(np.array([1, 2, 3]), np.array([0, 0, 0]), np.array([0]))
    assert ndcg(best, 2) == pytest.approx([1])


def test_precision_and_average_precision_by_hand() -> None:
    assert precision(LISTS, 5).tolist() == [1 / 5, 1 / 5, 0]
    assert precision(LISTS, 7).tolist() == [2 / 7, 1 / 7, 0]
    assert average_precision(LISTS, 5) == pytest.approx([0.25, 1, 0])
    assert average_precision(LISTS, 7) == pytest.approx([(1 / 2 + 2 / 7) / 2, 1, 0])


def reference(ranks: list[int], k: int) -> dict[str, float]:
    """Metrics of one list, from a row of zeros and ones."""
    row = [int(rank in ranks) for rank in range(1, max(*ranks, k) + 1)]
    first, ideal = row[:k], sorted(row, reverse=True)[:k]
    gain = [1 / math.log2(position + 2) for position in range(k)]
    return {
        f"Hit@{k}": float(any(first)),
        f"NDCG@{k}": sum(map(float.__mul__, map(float, first), gain))
        / sum(map(float.__mul__, map(float, ideal), gain)),
        f"Recall@{k}": sum(first) / len(ranks),
        f"Precision@{k}": sum(first) / k,
        f"MAP@{k}": sum(sum(row[: n + 1]) / (n + 1) for n in range(k) if row[n]) / len(ranks),
        "MRR": 1 / (row.index(1) + 1),
    }


RANKS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True), min_size=1, max_size=8)


def _lists(ranks: list[list[int]]) -> RankedLists:
    list_of = np.repeat(np.arange(len(ranks)), [len(r) for r in ranks])
    return RankedLists(np.concatenate(ranks), list_of, np.arange(len(ranks)))


@given(RANKS, st.integers(1, 20))
def test_metrics_equal_the_reference(ranks: list[list[int]], k: int) -> None:
    values = values_by_user(_lists(ranks), (k,))
    for user, own in enumerate(ranks):
        assert {name: v[user] for name, v in values.items()} == pytest.approx(reference(own, k))


@pytest.mark.filterwarnings("ignore:.*unsafe cast from uint64")  # numba, of ranx's own code
def test_metrics_equal_those_of_ranx() -> None:
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(0)
    ranks = [sorted(rng.choice(np.arange(1, 101), size=rng.integers(1, 6), replace=False).tolist()) for _ in range(50)]
    relevant = {f"u{u}": {f"i{rank}": 1 for rank in own} for u, own in enumerate(ranks)}
    ranked = {f"u{u}": {f"i{rank}": 101.0 - rank for rank in range(1, 101)} for u in range(len(ranks))}
    for k in (1, 5, 10, 20):
        means = MetricSums.of(_lists(ranks), ks=(k,), num_candidates=0).means()
        names = {f"hit_rate@{k}": f"Hit@{k}", f"ndcg@{k}": f"NDCG@{k}", f"recall@{k}": f"Recall@{k}"}
        names |= {f"precision@{k}": f"Precision@{k}", f"map@{k}": f"MAP@{k}", "mrr": "MRR"}
        theirs = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(ranked), list(names))
        assert {names[name]: value for name, value in theirs.items()} == pytest.approx(means, abs=1e-9)


def test_a_users_lists_are_averaged_before_users_are() -> None:
    lists = RankedLists(np.array([1, 20, 20, 1]), np.arange(4), np.array([0, 0, 0, 1]))
    sums = MetricSums.of(lists, ks=(10,), num_candidates=400)
    assert sums.num_users == 2
    assert sums.means()["Hit@10"] == pytest.approx((1 / 3 + 1) / 2)


def test_standard_error_of_hits_is_binomial() -> None:
    ranks = np.where(np.arange(100) < 30, 1, 50)
    sums = MetricSums.of(RankedLists(ranks, np.arange(100), np.arange(100)), ks=(10,), num_candidates=10_000)
    assert sums.standard_errors()["Hit@10"] == pytest.approx(math.sqrt(0.3 * 0.7 / 100))
    assert list(sums.means()) == ["Hit@10", "NDCG@10", "Recall@10", "Precision@10", "MAP@10", "MRR"]


@given(
    st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=4, unique=True), min_size=1, max_size=12),
    st.data(),
)
def test_merged_sums_of_any_spread_of_users_are_the_same_bits(ranks: list[list[int]], data: st.DataObject) -> None:
    worker = data.draw(st.lists(st.integers(0, 3), min_size=len(ranks), max_size=len(ranks)))
    parts = [[r for r, w in zip(ranks, worker, strict=True) if w == part] for part in range(4)]
    assert MetricSums.total(map(_sums, parts)) == _sums(ranks)
    restored = MetricSums.model_validate_json(_sums(ranks).model_dump_json())
    assert restored == _sums(ranks)


def _sums(ranks: list[list[int]]) -> MetricSums:
    if not ranks:
        return MetricSums()
    list_of = np.repeat(np.arange(len(ranks)), [len(r) for r in ranks])
    lists = RankedLists(np.concatenate(ranks), list_of, np.arange(len(ranks)))
    return MetricSums.of(lists, ks=(1, 5, 10), num_candidates=7 * len(ranks))
