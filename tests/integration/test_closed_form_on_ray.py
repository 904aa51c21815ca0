"""Models that are computed in closed form are the same on the cluster as in one process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_recsys.config import ClusterRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.distributed.executor import RayExecutor
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.mark.parametrize(
    "section",
    [
        {"name": "item_knn", "num_neighbours": 5, "significance": 3},
        {"name": "user_knn", "num_neighbours": 5, "recency_half_life": 3},
        {"name": "ials", "embedding_dim": 8, "epochs": 1},
    ],
    ids=lambda section: str(section["name"]),
)
def test_blocks_on_ray_give_what_one_block_here_gives(
    section: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    recipe, fit = parse_recipe({"model": section}, "test"), MODELS[section["name"]].fit
    assert fit is not None
    here = fit(prepared, recipe, SerialExecutor())
    monkeypatch.setattr("ray_recsys.core.models.similarity.BLOCK_BYTES", 30_000)
    monkeypatch.setattr("ray_recsys.core.models.ials.BLOCK_ENTRIES", 200)
    on_ray = fit(prepared, recipe, RayExecutor("train", ClusterRecipe()))
    user_idx = np.arange(here.num_users)
    assert np.array_equal(on_ray.scores(on_ray.users(user_idx)), here.scores(here.users(user_idx)))
