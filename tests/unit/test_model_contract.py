"""What every model of the registry promises, checked on a small prepared set."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.registry import MODELS, load_model
from ray_recsys.core.prepared import PreparedSet
from tests.factories import make_prepared_set

Result = TypeVar("Result")

CASES: list[tuple[str, dict[str, Any]]] = [
    ("popularity", {}),
    ("mf", {"embedding_dim": 8}),
    ("gmf", {"embedding_dim": 8}),
    ("mlp", {"embedding_dim": 8, "mlp_layers": [8, 4], "init_std": 0.5}),
    ("lightgcn", {"embedding_dim": 8}),
    ("lightgcn", {"embedding_dim": 8, "num_layers": 1}),
    ("neumf", {"embedding_dim": 8, "mlp_layers": [8, 4], "init_std": 0.5}),
    ("item_knn", {"num_neighbours": 10}),
    ("item_knn", {"num_neighbours": 5, "alpha": 0.6, "recency_half_life": 3, "recency_floor": 0.05, "significance": 3}),
    ("user_knn", {"num_neighbours": 10}),
    (
        "user_knn",
        {"num_neighbours": 7, "shrinkage": 2, "recency_half_life": 3, "significance": 2, "neighbour_half_life": 4},
    ),
    ("ease", {"l2": 3}),
    ("ease", {"l2": 3, "recency_half_life": 2.5}),
    ("ials", {"embedding_dim": 8, "epochs": 3}),
    ("ials", {"embedding_dim": 8, "epochs": 3, "recency_half_life": 3, "nu": 0.5}),
]
NUM_USERS, NUM_ITEMS = 60, 40


class Backwards(SerialExecutor):
    """Runs the last task first."""

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:  # noqa: ARG002
        for number in reversed(range(num_tasks)):
            yield task(number)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    path = tmp_path_factory.mktemp("prepared") / "set"
    return make_prepared_set(path, num_users=NUM_USERS, num_items=NUM_ITEMS, num_partitions=4)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{len(case[1])}")
def fitted(request: pytest.FixtureRequest, prepared: PreparedSet) -> tuple[str, Model]:
    name, overrides = request.param
    return name, make(name, overrides, prepared)


def make(name: str, overrides: dict[str, Any], prepared: PreparedSet, executor: SerialExecutor | None = None) -> Model:
    """Returns a fitted model, or the export of an untrained one."""
    spec, recipe = MODELS[name], recipe_of(name, overrides)
    if spec.fit is not None:
        return spec.fit(prepared, recipe, executor or SerialExecutor())
    assert spec.build is not None
    return spec.build(prepared, recipe).export()


def test_every_model_of_the_registry_is_here() -> None:
    assert {name for name, _ in CASES} == set(MODELS)


def recipe_of(name: str, overrides: dict[str, Any]) -> Recipe:
    return parse_recipe({"model": {"name": name, **overrides}}, "test")


def catalogue_scores(model: Model) -> Float32s:
    return model.scores(model.users(np.arange(model.num_users)))


def test_scores_are_finite_and_of_the_right_shape(fitted: tuple[str, Model]) -> None:
    scores = catalogue_scores(fitted[1])
    assert scores.shape == (NUM_USERS, NUM_ITEMS)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 1


def test_score_depends_on_its_user_and_item_alone(fitted: tuple[str, Model]) -> None:
    model, rng = fitted[1], np.random.default_rng(3)
    expected = catalogue_scores(model)
    for size in (1, 2, 7):
        user_idx = rng.integers(0, NUM_USERS, size)
        item_idx = rng.integers(0, NUM_ITEMS, (size, 9)).astype(np.int32)
        users, alone = model.users(user_idx), model.users(user_idx[-1:])
        np.testing.assert_allclose(model.scores(users), expected[user_idx], rtol=1e-5, atol=1e-6)
        among = np.take_along_axis(expected[user_idx], item_idx, axis=1)
        np.testing.assert_allclose(model.scores(users, item_idx), among, rtol=1e-5, atol=1e-6)
        assert np.array_equal(
            model.scores(users.take(slice(size - 1, size))), model.scores(users.take(np.array([size - 1])))
        )
        assert np.array_equal(model.scores(alone), model.scores(model.users(user_idx[-1:])))


def test_the_scores_are_the_callers_to_overwrite(fitted: tuple[str, Model]) -> None:
    expected = catalogue_scores(fitted[1])
    catalogue_scores(fitted[1])[:] = np.nan
    assert np.array_equal(catalogue_scores(fitted[1]), expected)


def test_model_survives_its_files(fitted: tuple[str, Model], tmp_path: Path) -> None:
    model = fitted[1]
    model.save(tmp_path)
    again = load_model(tmp_path)
    history = np.array([3, 0, 17], np.int32)
    assert (again.num_users, again.num_items) == (NUM_USERS, NUM_ITEMS)
    assert np.array_equal(catalogue_scores(again), catalogue_scores(model))
    folded, expected = again.fold_in(history), model.fold_in(history)
    assert folded is not None
    assert expected is not None
    # not the same bits: an array that is mapped begins elsewhere in a cache line, which changes the order of a sum
    np.testing.assert_allclose(again.scores(folded), model.scores(expected), rtol=1e-5, atol=1e-6)


def test_folding_in_a_trained_users_history_gives_that_user(fitted: tuple[str, Model], prepared: PreparedSet) -> None:
    name, model = fitted
    if name == "user_knn" or MODELS[name].fit is None:
        return  # a history has the trained user who owns it as a neighbour; gradient descent stops before the optimum
    expected = catalogue_scores(model)
    for partition in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(partition)
        for row, user in enumerate(histories.user_idx):
            begin, end = histories.training.offsets[row : row + 2]
            folded = model.fold_in(histories.training.item_idx[begin:end])
            assert folded is not None
            assert np.array_equal(model.scores(folded)[0], expected[user])


def test_recall_space_orders_items_as_the_scores_do(fitted: tuple[str, Model]) -> None:
    model = fitted[1]
    space = model.recall_space()
    if space is None or fitted[0] == "neumf":  # NeuMF recalls by its GMF branch alone; see test_neumf_inference
        return
    users = model.users(np.arange(NUM_USERS))
    queries = users.values[:, : space.query_width]  # type: ignore[union-attr]
    assert np.allclose(queries @ space.item_vectors.T, model.scores(users), atol=1e-5)


def test_neighbours_are_other_items_best_first(fitted: tuple[str, Model]) -> None:
    neighbours = fitted[1].neighbours(12, SerialExecutor())
    if neighbours is None:
        return
    assert neighbours.item_idx.shape == neighbours.scores.shape == (NUM_ITEMS, 12)
    assert (np.diff(neighbours.scores, axis=1) <= 0).all()
    for item, similar in enumerate(neighbours.item_idx):
        assert len(set(similar.tolist()) - {item}) == 12
    too_many = fitted[1].neighbours(NUM_ITEMS + 5, SerialExecutor())
    assert too_many is not None
    assert too_many.item_idx.shape == (NUM_ITEMS, NUM_ITEMS - 1)


@pytest.mark.parametrize(("name", "overrides"), CASES, ids=lambda value: str(value)[:40])
def test_blocks_and_their_order_do_not_show(
    name: str, overrides: dict[str, Any], prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = catalogue_scores(make(name, overrides, prepared))
    monkeypatch.setattr("ray_recsys.core.models.similarity.BLOCK_BYTES", 10_000)
    monkeypatch.setattr("ray_recsys.core.models.ials.BLOCK_ENTRIES", 37)
    monkeypatch.setattr("ray_recsys.core.models.ials.BATCH_VALUES", 300)
    monkeypatch.setattr("ray_recsys.core.models.sparse_rows.MAX_SCORES", 100)
    assert np.array_equal(catalogue_scores(make(name, overrides, prepared, Backwards())), expected)
