"""`evaluate`: the same sums as in one process, given candidates, data that do not belong to the model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import EvaluateRecipe, MFRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.evaluation.baselines import Random, fit_mean_rating
from ray_recsys.core.evaluation.bootstrap import user_weights
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.metrics import values_by_user
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.evaluation.rankings_file import read_facts, read_ranked_lists
from ray_recsys.core.evaluation.result import EvaluationResult
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.models.mf import MF
from ray_recsys.core.models.popularity import popularity_of
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import MODEL, RunStart, finish_run, start_of, start_run
from ray_recsys.core.workflows import evaluation_units
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.errors import ArtifactError, DataError, EmptyDataError, InputError, IntegrityError
from tests.bundles import make_bundle, random_model
from tests.executors import EXECUTOR
from tests.factories import change_a_byte, make_prepared_set

RECIPE = Recipe(evaluate=EvaluateRecipe(ks=(5, 10), num_sampled=9))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("evaluate") / "set")


@pytest.fixture(scope="module")
def run(prepared: PreparedSet) -> Path:
    manifest = prepared.manifest
    path = prepared.path.parent / "run"
    start = RunStart(num_users=60, num_items=40, input_fingerprint=manifest.input_fingerprint, recipe=RECIPE)
    start_run(path, start)
    (path / MODEL).mkdir()
    random_model(60, 40).export().save(path / MODEL)
    finish_run(path, num_epochs=1, best_epoch=1, metrics={"NDCG@10": 0.0})
    return path


def run_evaluate(models: list[Path], data: PreparedSet, recipe: Recipe = RECIPE, **options: Any) -> EvaluationResult:
    return evaluate(models, data, recipe.evaluate, SerialExecutor(), seed=recipe.seed, **options)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_sums_over_tasks_equal_those_of_one_process(
    run: Path, prepared: PreparedSet, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_units, "USERS_PER_UNIT", 8)
    evaluate_recipe = EvaluateRecipe.model_validate({**RECIPE.evaluate.model_dump(), "protocol": protocol})
    recipe = RECIPE.model_copy(update={"evaluate": evaluate_recipe})
    result = run_evaluate([run], prepared, recipe)
    assert result.protocol == {"full": "full", "sampled": "sampled-9"}[protocol]
    assert (result.num_users, result.num_held_out) == (60, 60)
    scorers: dict[str, Scorer] = {
        "NeuMF": random_model(60, 40).export(),
        "Popularity": popularity_of(prepared.item_counts(), 60),
        "Random": Random(40, recipe.seed),
    }
    assert list(result.models) == list(scorers)
    for name, scorer in scorers.items():
        sums = MetricSums.total(
            evaluate_users(
                scorer,
                prepared.read_partition(partition),
                num_items=40,
                recipe=recipe.evaluate,
                split="test",
                seed=recipe.seed,
            )
            for partition in range(3)
        )
        metrics = result.models[name].metrics
        assert {label: metrics[label] for label in sums.means()} == sums.means()


def test_a_bundle_on_given_candidates_ranks_unknown_ids_last(prepared: PreparedSet, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    items = prepared.read_items()["item_id"].to_pylist()
    rows = [
        *[("user-00003", items[i], int(i == 0)) for i in range(4)],
        *[("user-00003", "new item", 0)],
        *[("user-00007", items[5], 0), ("user-00007", "new item", 1)],
        *[("nobody", items[0], 1), ("nobody", items[1], 0), ("nobody", items[2], 0)],
        *[("user-00009", items[0], 0)],
    ]
    table = pa.table(dict(zip(("user_id", "item_id", "label"), map(list, zip(*rows, strict=True)), strict=True)))
    pq.write_table(table, tmp_path / "candidates.parquet")
    result = run_evaluate([tmp_path / "bundle"], prepared, candidates=tmp_path / "candidates.parquet")
    assert (result.protocol, result.num_users, result.num_held_out) == ("given", 3, 3)
    assert result.unknown is not None
    assert result.unknown.model_dump() == {"users": 1, "candidates": 2, "lists_without_held_out": 1}
    assert result.models["Popularity"].metrics["MRR"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_several_models_share_users_and_candidates(run: Path, prepared: PreparedSet, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    result = run_evaluate([run, tmp_path / "bundle"], prepared)
    assert list(result.models) == ["NeuMF (run)", "NeuMF (bundle)", "Popularity", "Random"]
    assert result.models["NeuMF (run)"] == result.models["NeuMF (bundle)"]


def test_data_and_models_that_do_not_belong_together_are_refused(run: Path, tmp_path: Path) -> None:
    other = make_prepared_set(tmp_path / "other", num_users=61)
    with pytest.raises(ArtifactError, match="trained on other data"):
        run_evaluate([run], other)
    with pytest.raises(ArtifactError, match="neither a run nor a bundle"):
        run_evaluate([other.path], other)


def test_data_with_a_changed_byte_are_refused(run: Path, tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "set")
    change_a_byte(data.path / "users/part-00001.parquet")
    with pytest.raises(IntegrityError, match=r"users/part-00001\.parquet"):
        run_evaluate([run], data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id,item_id\na,b\n", r"no column label \(columns found: user_id, item_id\)"),
        ("user_id,item_id,label\na,b,2\n", "row 1: 2; a label is 1"),
        ("user_id,item_id,label\na,b,1\na,b,0\n", "user 'a', item 'b' occurs twice"),
        ("user_id,item_id,label\na,b,yes\n", "column label"),
    ],
)
def test_candidate_files_that_cannot_be_used(prepared: PreparedSet, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "candidates.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        CandidateLists.read(tmp_path / "candidates.csv", prepared)


@pytest.mark.parametrize("rows", ["", "a,b,0\n"])
def test_candidate_files_without_a_held_out_item(prepared: PreparedSet, tmp_path: Path, rows: str) -> None:
    (tmp_path / "candidates.csv").write_text(f"user_id,item_id,label\n{rows}")
    with pytest.raises(EmptyDataError):
        CandidateLists.read(tmp_path / "candidates.csv", prepared)


def test_the_output_has_what_the_metrics_are_made_of(run: Path, prepared: PreparedSet, tmp_path: Path) -> None:
    output = tmp_path / "out/rankings.parquet"
    result = run_evaluate([run], prepared, output=output)
    assert read_facts(output)["protocol"] == "full"
    counts = dict(zip(*(prepared.read_items()[name].to_pylist() for name in ("item_id", "count")), strict=True))
    rows = pq.read_table(output).to_pylist()
    for label, model in result.models.items():
        own = [row for row in rows if row["model"] == label]
        assert len(own) == len({row["user_id"] for row in own}) == 60
        hits = [row["rank"][0] <= 5 for row in own]
        assert [row["held_out_item_id"][0] in row["top_item_id"][:5] for row in own] == hits
        assert model.metrics["Hit@5"] == pytest.approx(sum(hits) / 60)
        gains = [1 / math.log2(row["rank"][0] + 1) if row["rank"][0] <= 10 else 0 for row in own]
        assert model.metrics["NDCG@10"] == pytest.approx(sum(gains) / 60)
        assert [row["num_candidates"][0] + row["num_training"] + 1 for row in own] == [40] * 60
        shown = [item for row in own for item in row["top_item_id"][:10]]
        assert model.metrics["Coverage@10"] == len(set(shown)) / 40
        assert model.metrics["Novelty@10"] == pytest.approx(sum(-math.log2(counts[i] / 60) for i in shown) / len(shown))
    for label, user_ids, lists in read_ranked_lists(output):
        assert len(user_ids) == 60
        means = MetricSums.of(lists, ks=(5, 10), num_candidates=0).means()
        assert means == {name: result.models[label].metrics[name] for name in means}


def test_sampled_output_has_a_list_per_held_out_item(run: Path, prepared: PreparedSet, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"evaluate": RECIPE.evaluate.model_copy(update={"protocol": "sampled"})})
    result = run_evaluate([run], prepared, recipe, output=tmp_path / "rankings.parquet", baselines=False)
    assert list(result.models) == ["NeuMF"]
    ((label, _, lists),) = read_ranked_lists(tmp_path / "rankings.parquet")
    means = MetricSums.of(lists, ks=(5, 10), num_candidates=0).means()
    assert means == result.models[label].metrics
    assert pq.read_table(tmp_path / "rankings.parquet")["top_item_id"].null_count == 60


def test_buckets_divide_the_users_and_the_held_out_items(run: Path, prepared: PreparedSet) -> None:
    model = run_evaluate([run], prepared).models["NeuMF"]
    for buckets in (model.by_activity, model.by_popularity):
        assert sum(bucket.count for bucket in buckets) == 60
        mean = sum(bucket.count * bucket.metrics["NDCG@10"] for bucket in buckets) / 60
        assert mean == pytest.approx(model.metrics["NDCG@10"])
    assert 2 <= len(model.by_activity) <= 4


def test_a_sample_of_users_is_the_same_in_every_partition_and_says_how_many(
    run: Path, prepared: PreparedSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.model_copy(update={"evaluate": RECIPE.evaluate.model_copy(update={"max_users": 30})})
    result = run_evaluate([run], prepared, recipe, output=tmp_path / "sample.parquet")
    assert result.num_eligible_users == 60
    assert 15 <= result.num_users <= 45
    monkeypatch.setattr(evaluation_units, "USERS_PER_UNIT", 7)
    again = run_evaluate([run], prepared, recipe)
    assert again.models == result.models
    hits = result.models["NeuMF"].metrics["Hit@10"]
    error = math.sqrt(hits * (1 - hits) / result.num_users)
    assert result.models["NeuMF"].standard_errors["Hit@10"] == pytest.approx(error)


def test_what_does_not_go_with_given_candidates_is_refused(run: Path, prepared: PreparedSet, tmp_path: Path) -> None:
    given = tmp_path / "candidates.csv"
    with pytest.raises(InputError, match="--two-stage and --candidates exclude each other"):
        run_evaluate([run], prepared, candidates=given, two_stage=True)
    with pytest.raises(InputError, match="--output and --candidates exclude each other"):
        run_evaluate([run], prepared, candidates=given, output=tmp_path / "out.parquet")


def test_models_of_ratings_have_errors_beside_the_mean_rating(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "rated", has_ratings=True)
    recipe = parse_recipe(
        {"model": {"name": "mf"}, "train": {"objective": "explicit"}, "input": {"rating_column": "rating"}}, "test"
    )
    run = tmp_path / "explicit"
    start_run(run, start_of(data, recipe))
    (run / MODEL).mkdir()
    assert isinstance(recipe.model, MFRecipe)
    MF(60, 40, recipe.model).export().save(run / MODEL)
    finish_run(run, num_epochs=1, best_epoch=1, metrics={})
    result = run_evaluate([run], data, recipe)
    assert list(result.models) == ["MF", "Mean rating", "Popularity", "Random"]
    for label in ("MF", "Mean rating"):
        assert {"RMSE", "MAE", "NDCG@10"} <= set(result.models[label].metrics)
    assert "RMSE" not in result.models["Popularity"].metrics
    baseline = fit_mean_rating(data, EXECUTOR)
    users, items, ratings = _ratings(data)
    mean = sum(ratings) / len(ratings)
    own = [r - mean for i, r in zip(items, ratings, strict=True) if i == 3]
    assert baseline.item_biases[3] == pytest.approx(sum(own) / (25 + len(own)), rel=1e-5)
    rest = [r - mean - baseline.item_biases[i] for u, i, r in zip(users, items, ratings, strict=True) if u == 45]
    assert baseline.user_ratings[45] == pytest.approx(mean + sum(rest) / (10 + len(rest)), rel=1e-5)


def _ratings(data: PreparedSet) -> tuple[list[int], list[int], list[float]]:
    parts = [data.read_partition(partition) for partition in range(len(data.manifest.partitions))]
    users = [int(u) for part in parts for u in part.training.rows() + part.first_user_idx]
    items = [int(i) for part in parts for i in part.training.item_idx]
    return users, items, [float(r) for part in parts if part.training.rating is not None for r in part.training.rating]


def test_resampled_metrics_are_those_of_the_users_as_often_as_they_count(
    run: Path, prepared: PreparedSet, tmp_path: Path
) -> None:
    output = tmp_path / "rankings.parquet"
    result = run_evaluate([run], prepared, output=output, num_resamples=20)
    weights = user_weights(np.arange(60), 20, RECIPE.seed)
    for label, user_ids, lists in read_ranked_lists(output):
        rows = [int(str(user_id).removeprefix("user-")) for user_id in user_ids]
        for name, values in values_by_user(lists, (5, 10)).items():
            expected = [np.repeat(values, weights[resample, rows].astype(int)).mean() for resample in range(20)]
            assert result.models[label].resampled[name] == pytest.approx(expected, abs=1e-8)
