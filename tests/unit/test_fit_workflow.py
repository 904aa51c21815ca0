"""A fitted model leaves a run; a refit one has learnt from held-out interactions, and is not evaluated on them."""

from pathlib import Path

import numpy as np
import pytest

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training.run import Run
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.core.workflows.fit import fit
from ray_recsys.core.workflows.publish import publish
from ray_recsys.errors import ArtifactError, RecipeError
from tests.factories import make_prepared_set, rewrite_manifest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("fit") / "data")


def run_fit(prepared: PreparedSet, output: Path, **train: object) -> Run:
    recipe = parse_recipe({"model": {"name": "item_knn"}, "train": train}, "test")
    fit(prepared, output, recipe, SerialExecutor())
    return Run.open(output)


def test_a_fitted_run_has_its_validation_metrics_and_opens(prepared: PreparedSet, tmp_path: Path) -> None:
    run = run_fit(prepared, tmp_path / "run")
    run.verify()
    assert run.manifest.metrics["NDCG@10"] > 0
    assert (run.manifest.num_epochs, run.manifest.best_epoch, run.manifest.refit) == (0, 0, False)
    with pytest.raises(ArtifactError, match="exists already"):
        run_fit(prepared, tmp_path / "run")
    recipe = run.manifest.recipe
    assert fit(prepared, tmp_path / "run", recipe, SerialExecutor(), resume=True).metrics == run.manifest.metrics


def test_a_refit_learns_from_held_out_items_and_keeps_the_metrics_of_before(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    before, after = run_fit(prepared, tmp_path / "before"), run_fit(prepared, tmp_path / "after", refit=True)
    assert after.manifest.refit
    assert after.manifest.metrics == before.manifest.metrics
    everybody = np.arange(prepared.manifest.num_users)
    old, new = before.load_model(), after.load_model()
    assert not np.array_equal(old.scores(old.users(everybody)), new.scores(new.users(everybody)))
    everything = prepared.with_held_out()
    straight = run_fit(everything, tmp_path / "straight").load_model()
    assert np.array_equal(new.scores(new.users(everybody)), straight.scores(straight.users(everybody)))


def test_a_refit_model_is_refused_where_it_has_seen_the_answers(prepared: PreparedSet, tmp_path: Path) -> None:
    run = run_fit(prepared, tmp_path / "run", refit=True)
    recipe = run.manifest.recipe
    with pytest.raises(ArtifactError, match="has seen the held-out items"):
        evaluate([run.path], prepared, recipe.evaluate, SerialExecutor(), seed=1)
    honest = run_fit(prepared, tmp_path / "honest")
    with pytest.raises(ArtifactError, match=r"/run was refit on everything"):
        evaluate([honest.path, run.path], prepared, recipe.evaluate, SerialExecutor(), seed=1)
    items, users = prepared.read_items()["item_id"].to_pylist(), prepared.read_user_ids(0).to_pylist()
    candidates = tmp_path / "candidates.csv"
    candidates.write_text(f"user_id,item_id,label\n{users[0]},{items[0]},1\n{users[0]},{items[1]},0\n")
    result = evaluate([run.path], prepared, recipe.evaluate, SerialExecutor(), seed=1, candidates=candidates)
    assert result.num_users == 1


def test_a_refit_on_a_test_in_files_of_its_own_is_refused(tmp_path: Path) -> None:
    given = rewrite_manifest(make_prepared_set(tmp_path / "given"), split={"method": "given"})
    with pytest.raises(RecipeError, match=r"train\.refit = true: .*/given has its test in separate files"):
        run_fit(given, tmp_path / "run", refit=True)
    assert not (tmp_path / "run").exists()
    run_fit(given, tmp_path / "run")


def test_a_bundle_with_a_refit_recall_model_is_a_refit_bundle(prepared: PreparedSet, tmp_path: Path) -> None:
    run = run_fit(prepared, tmp_path / "run")
    run_fit(prepared, tmp_path / "recall", refit=True)
    arguments = (run.path, prepared.path, tmp_path / "registry", run.manifest.recipe.bundle, SerialExecutor())
    assert publish(*arguments, recall_run=tmp_path / "recall").refit


def test_a_bundle_says_whether_its_model_was_refit_and_which_models_it_has(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    run_fit(prepared, tmp_path / "recall")
    run_fit(prepared, tmp_path / "run", refit=True)
    registry = tmp_path / "registry"
    arguments = (tmp_path / "run", prepared.path, registry, Run.open(tmp_path / "run").manifest.recipe.bundle)
    result = publish(*arguments, SerialExecutor(), recall_run=tmp_path / "recall")
    assert result.refit
    assert (result.model, result.recall_model) == ("item_knn", "item_knn")
    bundle = Registry(registry).open()
    assert bundle.manifest.refit
    assert bundle.load_recall_model() is not None
