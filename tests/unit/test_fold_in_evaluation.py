"""Users known from their histories alone: scored like their own fold-ins, and left out of a copy of the set."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.fold_in import SEED, measure, write_without
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.evaluation.candidates import choose_users
from ray_recsys.core.evaluation.fold_in import FoldedIn
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from tests.bundles import random_model
from tests.factories import make_prepared_set


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("fold-in") / "set")


def test_a_model_of_histories_folds_in_what_it_was_trained_on(prepared: PreparedSet) -> None:
    recipe = parse_recipe({"model": {"name": "item_knn"}}, "test")
    fit = MODELS["item_knn"].fit
    assert fit is not None
    model = fit(prepared, recipe, SerialExecutor())
    histories = prepared.read_partition(1)
    users = histories.user_idx[[4, 0, 7]]
    folded = FoldedIn(model, histories)
    np.testing.assert_allclose(folded.scores(folded.users(users)), model.scores(model.users(users)), rtol=1e-6)
    result = measure(prepared, model, model, recipe, share=0.5)
    assert set(result["metrics"]) == {f"{m} {p}" for m in ("Hit@10", "NDCG@10") for p in ("full", "sampled-99")}
    for values in result["metrics"].values():
        assert values["share_kept"] == pytest.approx(1.0)
    assert result["num_users"] == choose_users(np.arange(60), 0.5, SEED).sum()


def test_dense_factors_are_those_of_each_history(prepared: PreparedSet) -> None:
    model, histories = random_model(60, 40).export(), prepared.read_partition(2)
    users = histories.user_idx[:3]
    scorer = FoldedIn(model, histories, with_validation=True)
    together = scorer.scores(scorer.users(users), np.tile(np.arange(40), (3, 1)))
    for row, user in enumerate(users.tolist()):
        assert scorer.history(user)[-1] == histories.validation.item_idx[row]
        alone = model.fold_in(scorer.history(user))
        assert alone is not None
        np.testing.assert_allclose(together[row], model.scores(alone, np.arange(40)[np.newaxis])[0], rtol=1e-5)


def test_the_copy_has_the_other_users_with_all_their_interactions(prepared: PreparedSet, tmp_path: Path) -> None:
    copy = write_without(prepared, tmp_path / "copy", 0.3)
    kept: list[list[list[int]]] = []
    for partition in range(3):
        histories = prepared.read_partition(partition)
        for row in np.flatnonzero(~choose_users(histories.user_idx, 0.3, SEED)).tolist():
            parts = (histories.training, histories.validation, histories.test)
            kept.append([part.item_idx[part.offsets[row] : part.offsets[row + 1]].tolist() for part in parts])
    found: list[list[list[int]]] = []
    for partition in range(3):
        histories = copy.read_partition(partition)
        assert histories.first_user_idx == len(found)
        for row in range(histories.training.num_users):
            parts = (histories.training, histories.validation, histories.test)
            found.append([part.item_idx[part.offsets[row] : part.offsets[row + 1]].tolist() for part in parts])
    assert found == kept
    assert 0 < copy.manifest.num_users == len(kept) < 60
    assert copy.manifest.num_items == 40
