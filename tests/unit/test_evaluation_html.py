"""The page of an evaluation holds its figures, plots and baselines, and refers to nothing outside itself."""

import re
from pathlib import Path

import pytest

from ray_recsys.config import EvaluateRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.core.workflows.fit import fit
from ray_recsys.reports.evaluation_html import write_html
from tests.factories import make_prepared_set

pytest.importorskip("matplotlib")


def test_the_page_shows_models_beside_baselines_with_intervals_buckets_and_both_stages(tmp_path: Path) -> None:
    prepared, executor = make_prepared_set(tmp_path / "films <1>"), SerialExecutor()
    recipe = parse_recipe({"model": {"name": "item_knn"}}, "test")
    fit(prepared, tmp_path / "run", recipe, executor)
    result = evaluate([tmp_path / "run"], prepared, EvaluateRecipe(ks=(5, 10)), executor, seed=1, two_stage=True)
    write_html(result, prepared.path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf8")
    label, model = next(iter(result.models.items()))
    value, error = model.metrics["NDCG@10"], model.standard_errors["NDCG@10"]
    assert f"{value:.4f} ±{1.96 * error:.4f}" in page
    assert all(f"<th>{name}</th>" in page for name in (label, "Popularity", "Random"))
    assert page.count("<svg") == 3 + 2 + 1  # NDCG, Hit, Recall; users, held-out items; two stages
    assert all(f"<td>{bucket.training_interactions}</td>" in page for bucket in model.by_activity)
    assert model.two_stage is not None
    assert all(f"<td>{point.num_candidates:,}</td>" in page for point in model.two_stage.points)
    assert "films &lt;1&gt;" in page
    assert "films <1>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_candidates_of_a_file_have_no_buckets(tmp_path: Path) -> None:
    prepared, executor = make_prepared_set(tmp_path / "data"), SerialExecutor()
    fit(prepared, tmp_path / "run", parse_recipe({"model": {"name": "popularity"}}, "test"), executor)
    result = evaluate([tmp_path / "run"], prepared, EvaluateRecipe(ks=(10,)), executor, seed=1)
    bare = {
        name: model.model_copy(update={"by_activity": (), "by_popularity": ()}) for name, model in result.models.items()
    }
    write_html(result.model_copy(update={"models": bare}), prepared.path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf8")
    assert "by training interactions" not in page
    assert "Popularity" in page
