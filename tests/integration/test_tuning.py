"""Ray Tune for real: a small search ends poor trials early and writes a recipe that trains as it is."""

import csv
from pathlib import Path

import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe, parse_recipe
from ray_recsys.distributed.tuning import tune
from ray_recsys.errors import ArtifactError, IntegrityError
from ray_recsys.progress import Event
from tests.factories import change_a_byte, make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_search_writes_the_best_recipe(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared = make_prepared_set(tmp_path / "data")
    recipe = parse_recipe(
        {
            "model": {"mlp_layers": [8, 4], "init_std": 0.1},
            "train": {"epochs": 4, "batch_size": 64},
            "tune": {"num_trials": 3, "embedding_dim": [4, 8], "grace_epochs": 1},
        },
        "test",
    )
    lines: list[Event] = []
    result = tune(prepared.path, tmp_path / "tuned", recipe, report=lines.append)

    assert capfd.readouterr().out == ""  # Tune's own tables stay away
    assert result.num_trials == len(result.trials) == 3
    assert all(trial.error is None and 1 <= trial.num_epochs <= 4 for trial in result.trials)
    values = [trial.metrics["NDCG@10"] for trial in result.trials]
    assert values == sorted(values, reverse=True)
    best = load_recipe(result.best_recipe)
    assert (best.model.embedding_dim, best.train.learning_rate) == (
        result.best.embedding_dim,
        result.best.learning_rate,
    )
    assert best.model.mlp_layers == (8, 4)
    rows = list(csv.DictReader((tmp_path / "tuned" / "trials.csv").read_text().splitlines()))
    assert [float(row["NDCG@10"]) for row in rows] == values
    assert sum(line.startswith("trial ") for line in lines) == 3
    with pytest.raises(ArtifactError, match="exists already"):
        tune(prepared.path, tmp_path / "tuned", recipe)


def test_data_with_a_changed_byte_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data")
    change_a_byte(data.path / "items.parquet")
    with pytest.raises(IntegrityError, match=r"items\.parquet"):
        tune(data.path, tmp_path / "tuned", Recipe())
    assert not (tmp_path / "tuned").exists()
