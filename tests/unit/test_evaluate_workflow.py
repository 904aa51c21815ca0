"""`evaluate`: the same sums as in one process, given candidates, data that do not belong to the model."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import EvaluateRecipe, Recipe
from ray_recsys.core.evaluation.baselines import Random
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.models.popularity import popularity_of
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import MODEL, RunStart, finish_run, start_run
from ray_recsys.core.workflows import evaluate as workflow
from ray_recsys.core.workflows.evaluate import EvaluationResult, evaluate
from ray_recsys.errors import ArtifactError, DataError, EmptyDataError, IntegrityError
from tests.bundles import make_bundle, random_model
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
    monkeypatch.setattr(workflow, "_USERS_PER_UNIT", 8)
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
        assert result.models[name].metrics == sums.means()


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
