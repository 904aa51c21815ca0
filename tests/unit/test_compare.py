"""`compare`: seeds are averaged per user, intervals are paired, finished cells are kept, reports show it all."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.evaluation.bootstrap import user_weights
from ray_recsys.core.evaluation.comparison import Comparison
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.distributed import comparing
from ray_recsys.distributed.comparing import compare, name_recipes
from ray_recsys.errors import ArtifactError, InputError
from tests.factories import make_prepared_set

NUM_USERS, NUM_RESAMPLES = 60, 200
TERMS = parse_recipe({"seed": 5, "evaluate": {"ks": [5, 10], "num_sampled": 9}}, "test")


def recipes() -> dict[str, Recipe]:
    model = {"name": "ials", "embedding_dim": 4, "epochs": 2}
    ials = parse_recipe({"model": model, "train": {"refit": True}}, "test")
    return {"factors": ials, "similar": parse_recipe({"model": {"name": "item_knn"}}, "test")}


def run_compare(data: Path, output: Path, terms: Recipe = TERMS) -> Comparison:
    return compare(data, output, recipes(), terms, SerialExecutor(), num_seeds=2, num_resamples=NUM_RESAMPLES)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("compare") / "set", num_users=NUM_USERS)


@pytest.fixture(scope="module")
def compared(prepared: PreparedSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Comparison]:
    output = tmp_path_factory.mktemp("compared") / "out"
    return output, run_compare(prepared.path, output)


def user_values(prepared: PreparedSet, run: Path, directory: Path) -> np.ndarray:
    """Returns NDCG@10 of each user in order of user_idx, from the ranks that `evaluate` writes."""
    file = directory / f"{run.parent.name}-{run.name}.parquet"
    evaluate([run], prepared, TERMS.evaluate, SerialExecutor(), seed=TERMS.seed, baselines=False, output=file)
    ranks = np.array([rank[0] for rank in pq.read_table(file)["rank"].to_pylist()])
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def test_values_and_intervals_equal_a_loop_over_resamples(
    prepared: PreparedSet, compared: tuple[Path, Comparison], tmp_path: Path
) -> None:
    output, comparison = compared
    weights = user_weights(np.arange(NUM_USERS), NUM_RESAMPLES, TERMS.seed)
    mean_of_seeds = {
        name: np.mean([user_values(prepared, output / name / f"seed-{seed}", tmp_path) for seed in (5, 6)], axis=0)
        for name in recipes()
    }
    for result in comparison.recipes:
        values = mean_of_seeds[result.recipe]
        interval = result.metrics["NDCG@10"]
        assert interval.value == pytest.approx(values.mean())
        resampled = [np.repeat(values, row.astype(int)).mean() for row in weights]
        assert [interval.low, interval.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=1e-8)
    (difference,) = comparison.differences
    values = mean_of_seeds[difference.recipe] - mean_of_seeds[difference.other]
    interval = difference.metrics["NDCG@10"]
    assert interval.value == pytest.approx(values.mean())
    assert interval.value >= 0
    resampled = [np.repeat(values, row.astype(int)).mean() for row in weights]
    assert [interval.low, interval.high] == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=1e-8)


def test_seeds_spread_and_a_deterministic_model_has_none(compared: tuple[Path, Comparison]) -> None:
    results = {result.recipe: result for result in compared[1].recipes}
    assert results["similar"].deviations["MRR"] == 0.0
    assert results["factors"].deviations["MRR"] > 0.0
    assert results["factors"].seeds == (5, 6)
    assert results["similar"].cost.fold_in_ms is not None
    assert set(compared[1].baselines) == {"Popularity", "Random"}


def test_finished_cells_are_kept_and_others_made_again(
    prepared: PreparedSet, compared: tuple[Path, Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, before = compared
    evaluated: list[str] = []

    def counted(models: list[Path], *arguments: object, **options: object) -> object:
        evaluated.extend(path.name for path in models)
        return evaluate(models, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(comparing, "evaluate", counted)
    assert run_compare(prepared.path, output) == before
    assert not evaluated
    (output / "similar/seed-6.json").unlink()
    again = run_compare(prepared.path, output)
    assert evaluated == ["seed-6"]
    assert again.differences == before.differences
    sampled = TERMS.model_copy(update={"evaluate": TERMS.evaluate.model_copy(update={"protocol": "sampled"})})
    assert run_compare(prepared.path, output, sampled).protocol == "sampled-9"
    assert len(evaluated) == 5


def test_a_run_of_another_recipe_is_refused(prepared: PreparedSet, tmp_path: Path) -> None:
    one = {"similar": parse_recipe({"model": {"name": "item_knn"}}, "test")}
    other = {"similar": parse_recipe({"model": {"name": "item_knn", "shrinkage": 9.0}}, "test")}
    options = {"num_seeds": 1, "num_resamples": 100}
    compare(prepared.path, tmp_path / "out", one, TERMS, SerialExecutor(), **options)  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"model\.shrinkage = 0\.0, now 9\.0"):
        compare(prepared.path, tmp_path / "out", other, TERMS, SerialExecutor(), **options)  # type: ignore[arg-type]


def test_a_budget_holds_for_all_stages_together() -> None:
    staged = parse_recipe(
        {"model": {"name": "neumf", "pretrain": {"gmf": {}, "mlp": {}}}, "train": {"refit": True}}, "x"
    )
    alike = comparing._alike(staged, TERMS, 7, max_seconds=90.0)
    assert isinstance(alike.model, NeuMFRecipe)
    assert alike.model.pretrain is not None
    stages = (alike, alike.model.pretrain.gmf, alike.model.pretrain.mlp)
    assert [stage.train.max_time_s for stage in stages if stage is not None] == [30.0] * 3
    assert (alike.seed, alike.train.refit, alike.cluster) == (7, False, TERMS.cluster)
    assert comparing._alike(staged, TERMS, 7, max_seconds=None).train.max_time_s is None


def test_the_reports_show_every_recipe(compared: tuple[Path, Comparison]) -> None:
    pytest.importorskip("matplotlib")
    output, comparison = compared
    best = comparison.recipes[0]
    assert json.loads((output / "comparison.json").read_text())["main_metric"] == "NDCG@10"
    text = (output / "comparison.md").read_text(encoding="utf8")
    assert f"| {best.recipe} | " in text
    assert f"{best.recipe} − {comparison.recipes[1].recipe}" in text
    page = (output / "report.html").read_text(encoding="utf8")
    assert page.count("<svg") == 4  # cost, recall, two of buckets; no curves without epochs
    assert f"{best.metrics['NDCG@10'].value:.4f}" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_recipes_of_one_name_are_refused() -> None:
    assert name_recipes([Path("a/x.toml"), Path("b/y.toml")]) == ["x", "y"]
    with pytest.raises(InputError, match=r"a/x\.toml: another recipe is named 'x' too"):
        name_recipes([Path("a/x.toml"), Path("b/x.toml")])


def test_without_recipes_there_is_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipes to compare; give --recipes A\.toml B\.toml"):
        compare(tmp_path, tmp_path / "out", {}, Recipe(), SerialExecutor())
    assert not (tmp_path / "out").exists()
