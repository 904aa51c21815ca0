"""Descriptions are exact where they can be counted by hand, and the page needs nothing beside itself."""

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.histories import Interactions
from ray_recsys.core.inspecting.describe import (
    DAY_S,
    MAX_CURVE_POINTS,
    Tally,
    concentration,
    describe,
    describe_tally,
    gini,
    spread_of,
)
from ray_recsys.errors import ArtifactError, InputError, IntegrityError
from ray_recsys.reports.describe_html import write_html
from tests.factories import change_a_byte, make_prepared_set


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40))
def test_gini_and_quantiles_are_those_of_all_pairs_and_of_the_sorted_list(numbers: list[int]) -> None:
    values, frequencies = np.unique(numbers, return_counts=True)
    spread = spread_of(values, frequencies)
    array = np.array(numbers, np.float64)
    mean_difference = np.abs(array[:, None] - array[None, :]).mean()
    expected = mean_difference / (2 * array.mean()) if array.sum() else 0.0
    assert spread.gini == pytest.approx(expected, abs=1e-12)
    assert spread.mean == pytest.approx(array.mean())
    ordered = sorted(numbers)
    for quantile in (0.25, 0.5, 0.95):
        rank = max(1, int(np.ceil(quantile * len(ordered))))
        assert spread.quantiles[f"{quantile:g}"] == ordered[rank - 1]
    assert (spread.quantiles["0"], spread.quantiles["1"]) == (ordered[0], ordered[-1])
    assert sum(count for _, count in spread.histogram) == len(numbers)


def test_gini_of_equal_and_of_one_owner() -> None:
    assert gini(np.array([5]), np.array([8])) == pytest.approx(0.0)
    assert gini(np.array([0, 7]), np.array([9, 1])) == pytest.approx(0.9)


def test_a_long_histogram_is_put_together_without_loss() -> None:
    values = np.arange(1, 100_001)
    histogram = spread_of(values, np.ones_like(values)).histogram
    assert len(histogram) <= MAX_CURVE_POINTS
    assert histogram[0] == (1, 1)
    assert sum(count for _, count in histogram) == len(values)


def test_concentration_counts_the_most_popular_first() -> None:
    curve = dict(concentration(np.array([6, 3, 1])))
    assert curve == pytest.approx({1 / 3: 0.6, 2 / 3: 0.9, 1.0: 1.0})


def test_days_of_a_tally_hold_every_interaction() -> None:
    times = np.array([0, DAY_S - 1, DAY_S, 1000 * DAY_S + 5])
    part = Interactions(np.array([0, 1, 4]), np.arange(4, dtype=np.int32), times)
    tally = Tally.of([part])
    assert tally.users_by_activity == {1: 1, 3: 1}
    tally.merge(Tally.of([part]))
    time = tally.time_range()
    assert time is not None
    assert (time.first_s, time.last_s) == (0, 1000 * DAY_S + 5)
    assert len(time.interactions_per_day) <= MAX_CURVE_POINTS
    assert time.interactions_per_day[0] == (0, 6)
    assert sum(count for _, count in time.interactions_per_day) == 8


def test_a_log_without_times_has_no_time_range() -> None:
    assert Tally.of([Interactions(np.array([0, 1]), np.zeros(1, np.int32))]).time_range() is None


def test_a_prepared_set_is_described(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared", num_users=60, num_items=40)
    description = describe(prepared.path)
    histories = [prepared.read_partition(p) for p in range(3)]
    lengths = [int(n) for h in histories for n in h.training.lengths + h.validation.lengths + h.test.lengths]
    assert len(lengths) == description.num_users == 60
    assert description.num_interactions == sum(lengths)
    assert description.density == pytest.approx(sum(lengths) / (60 * 40))
    assert description.activity.mean == pytest.approx(np.mean(lengths))
    assert description.activity.quantiles["1"] == max(lengths)
    assert description.popularity.quantiles["1"] == prepared.item_counts()[0]
    assert description.time is not None
    assert description.time.last_s == 2_000_000
    assert description.split == {"method": "leave_one_out"}
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["users/part-00002.parquet", "items.parquet"])
def test_a_changed_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    prepared = make_prepared_set(tmp_path / "prepared")
    change_a_byte(prepared.path / name)
    with pytest.raises(IntegrityError, match=name):
        describe(prepared.path)


def test_the_page_holds_the_figures_and_needs_nothing_else(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "<prepared>")
    description = describe_tally(prepared, Tally.of([prepared.read_partition(0).training])).model_copy(
        update={"rows_dropped": {"null_user_id": 1_234}, "split": {"method": "global_time", "test_from_s": 1_500_000}}
    )
    write_html(description, tmp_path / "out" / "page.html")
    page = (tmp_path / "out" / "page.html").read_text(encoding="utf8")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["page.html"]
    assert page.count("<svg") == 4
    assert "&lt;prepared&gt;" in page
    assert "<prepared>" not in page
    assert "dropped: null user id</td><td>1,234</td>" in page
    assert re.findall(r'(?:src|href)="(?!#)', page) == []
    write_html(description, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf8") == page


def test_a_page_without_matplotlib_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    description = describe(make_prepared_set(tmp_path / "prepared").path)
    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=r"pip install 'ray-recsys\[report\]'"):
        write_html(description, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
