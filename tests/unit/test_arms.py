"""Two versions side by side: who gets which, what is recorded of it, and what happens when an arm cannot be served."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.arms import Arm, choose_arm, end_arm, read_arms, set_arm
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.errors import RegistryError
from ray_recsys.serving import impressions
from ray_recsys.serving.api import Api
from ray_recsys.serving.impressions import Impression, ImpressionSink
from ray_recsys.serving.metrics import text_of
from ray_recsys.serving.schemas import RecommendRequest, RecommendResponse
from tests.app_client import local_api
from tests.bundles import make_bundle, publish_bundle
from tests.factories import make_prepared_set

VERSION = "20260101T000000Z-00000000"


def _arm(name: str, percent: float, *, shadow: bool = False, version: str = VERSION) -> Arm:
    return Arm(name=name, version=version, percent=percent, shadow=shadow)


def test_users_are_split_by_percent_and_stay_in_their_arm() -> None:
    arms = [_arm("B", 10), _arm("C", 25.5)]
    chosen = {user: choose_arm(arms, user) for user in range(20_000)}
    count = Counter(None if arm is None else arm.name for arm in chosen.values())
    assert count["B"] / 20_000 == pytest.approx(0.10, abs=0.01)
    assert count["C"] / 20_000 == pytest.approx(0.255, abs=0.015)
    assert all(choose_arm(arms, str(user)) == arm for user, arm in list(chosen.items())[:200])
    alone = [choose_arm(arms[:1], user) for user in range(500)]
    assert [one == arms[0] for one in alone] == [chosen[user] == arms[0] for user in range(500)]
    assert choose_arm(arms, None) is None


def test_arms_are_set_replaced_and_ended(tmp_path: Path) -> None:
    assert read_arms(tmp_path) == []
    set_arm(tmp_path, _arm("B", 10))
    set_arm(tmp_path, _arm("B", 60))
    with pytest.raises(RegistryError, match="100 %"):
        set_arm(tmp_path, _arm("C", 50))
    for name in ("A", "", "B/C"):
        with pytest.raises(RegistryError, match="name"):
            set_arm(tmp_path, _arm(name, 1))
    set_arm(tmp_path, _arm("C", 40))
    with pytest.raises(RegistryError, match="at most 2"):
        set_arm(tmp_path, _arm("D", 0.1))
    assert [arm.name for arm in read_arms(tmp_path)] == ["B", "C"]
    assert end_arm(tmp_path, "B").percent == 60
    with pytest.raises(RegistryError, match="no arm 'B'; it has C"):
        end_arm(tmp_path, "B")
    (tmp_path / "ARMS").write_text("[{}]")
    with pytest.raises(RegistryError, match="ARMS cannot be read"):
        read_arms(tmp_path)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Two versions: the first is live, the second beside it."""
    prepared = make_prepared_set(tmp_path / "prepared")
    home = Registry(tmp_path / "registry")
    publish_bundle(home.path, prepared, seed=1)
    with home.staging() as staging:
        make_bundle(staging / "bundle", prepared, seed=2)
        beside = home.publish(staging / "bundle", live=False)
    assert beside != home.current()
    return home


def _beside(registry: Registry) -> str:
    return next(version for version in registry.versions() if version != registry.current())


@pytest.fixture
def api(registry: Registry, tmp_path: Path) -> Api:
    made = local_api(registry.path, ServeRecipe(impressions=str(tmp_path / "impressions")))
    made.live._poll_s = 0.01
    return made


def _ask(api: Api, is_ready: Callable[[], bool], users: list[str]) -> list[RecommendResponse]:
    async def ask() -> list[RecommendResponse]:
        api.start()
        while not is_ready():
            await asyncio.sleep(0.01)
        bodies = [(await api.recommend(RecommendRequest(user_id=user))).body for user in users]
        await asyncio.sleep(0.05)
        api.stop()
        return [RecommendResponse.model_validate_json(bytes(body)) for body in bodies]

    return asyncio.run(asyncio.wait_for(ask(), 20))


def test_each_user_is_answered_by_the_version_of_the_arm_and_every_answer_is_recorded(
    api: Api, registry: Registry, tmp_path: Path
) -> None:
    set_arm(registry.path, _arm("B", 50, version=_beside(registry)))
    users = [f"user-{number:05d}" for number in range(40)]
    answers = _ask(api, lambda: bool(api.live.arms), users)
    versions = {"A": registry.current(), "B": _beside(registry)}
    recommenders = {name: Recommender(registry.open(version)) for name, version in versions.items()}
    assert {answer.arm for answer in answers} == {"A", "B"}
    for user, answer in zip(users, answers, strict=True):
        recommender = recommenders[answer.arm]
        assert answer.bundle == versions[answer.arm]
        best = recommender.recommend(Query(user_idx=recommender.bundle.users.find(user)))
        assert [item.item_id for item in answer.items] == [
            item.item_id for item in recommender.bundle.catalogue.describe(best.item_idx)
        ]
    table = pq.read_table(tmp_path / "impressions").to_pylist()
    assert {row["user_id"]: (row["arm"], row["version"], row["item_ids"]) for row in table} == {
        user: (answer.arm, answer.bundle, [item.item_id for item in answer.items])
        for user, answer in zip(users, answers, strict=True)
    }
    assert next((tmp_path / "impressions").glob("date=*/hour=*/*.parquet"))
    text = text_of([api.own_metrics()]).decode()
    samples = {
        (sample.name, sample.labels.get("arm")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "arm" in sample.labels and sample.labels.get("source", "two-stage") == "two-stage"
    }
    count = Counter(answer.arm for answer in answers)
    for arm in "AB":
        assert samples["ray_recsys_answers_total", arm] == samples["ray_recsys_arm_seconds_count", arm] == count[arm]


def test_a_shadow_answers_nobody_and_is_compared(api: Api, registry: Registry) -> None:
    set_arm(registry.path, _arm("B", 100, shadow=True, version=_beside(registry)))
    answers = _ask(api, lambda: bool(api.live.arms), [f"user-{number:05d}" for number in range(10)])
    assert {(answer.arm, answer.bundle) for answer in answers} == {("A", registry.current())}
    assert sum(api.metrics.shadows["B"].counts) == 10
    assert 0 <= api.metrics.shadows["B"].total < 10
    assert not api.metrics.shadow_failures


def test_an_arm_that_cannot_be_served_leaves_its_users_to_the_live_version(api: Api, registry: Registry) -> None:
    set_arm(registry.path, _arm("B", 100, version=_beside(registry)))
    (registry.path / _beside(registry) / "seen_items.npy").write_bytes(b"damaged")
    (answer,) = _ask(api, lambda: api.live.arm_failure is not None, ["user-00001"])
    assert (answer.arm, answer.bundle) == ("A", registry.current())
    assert "arm B: IntegrityError" in (api.live.arm_failure or "")


def test_the_version_of_an_arm_is_not_pruned(registry: Registry, tmp_path: Path) -> None:
    beside = _beside(registry)
    prepared = make_prepared_set(tmp_path / "other", seed=4)
    for seed in (5, 6, 7):
        publish_bundle(registry.path, prepared, seed=seed)
    set_arm(registry.path, _arm("B", 5, version=beside))
    assert beside not in registry.prune(1)[0]
    end_arm(registry.path, "B")
    assert beside in registry.prune(1)[0]


def _impression(user_id: int | None = 7) -> Impression:
    return Impression("r-1", time.time(), "A", VERSION, user_id, "two-stage", [3, 1])


def test_impressions_are_dropped_and_counted_when_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = ImpressionSink(tmp_path / "full", max_bytes=1)
    for _ in range(2):
        sink.add(_impression())
        sink.stop()
    assert (sink.num_written, sink.num_dropped) == (1, 1)  # the first file fills the directory
    (tmp_path / "file").write_text("")
    blocked = ImpressionSink(tmp_path / "file", max_bytes=1e9)
    monkeypatch.setattr(impressions, "MAX_WAITING", 3)
    for _ in range(5):
        blocked.add(_impression(None))
    assert blocked.num_dropped == 2
    blocked.stop()
    assert (blocked.num_written, blocked.num_dropped) == (0, 5)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_id_that_is_no_utf8_costs_its_batch_and_not_the_next_one(tmp_path: Path) -> None:
    sink = ImpressionSink(tmp_path, max_bytes=1e9)
    sink.add(replace(_impression(), user_id="\ud800"))
    sink.stop()
    assert (sink.num_written, sink.num_dropped) == (0, 1)
    sink.add(_impression())
    sink.stop()
    assert (sink.num_written, sink.num_dropped) == (1, 1)
