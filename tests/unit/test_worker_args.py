"""What the driver tells its workers arrives as it was sent."""

import pytest

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.training.warm_start import WarmStart
from ray_recsys.distributed.resources import FeedResources
from ray_recsys.distributed.train_worker import WorkerArgs
from ray_recsys.storage.location import Location


@pytest.mark.parametrize("root", ["/mnt", "s3://bucket/runs?endpoint_override=localhost:9000&scheme=http"])
def test_arguments_survive_the_way_to_a_worker(root: str) -> None:
    home = Location.of(root)
    args = WorkerArgs(
        data=home / "data",
        run=home / "run",
        recipe=parse_recipe({"tune": {"space": {"train.epochs": {"choice": [1, 2]}}}}, "test"),
        resources=FeedResources("task", 0.25, 3),
        warm_start=WarmStart(bundle=home / "registry/version", version="version", refit=False),
        branch="gmf",
        branches={"mlp": home / "best"},
    )
    assert WorkerArgs.model_validate(args.model_dump()) == args
    assert WorkerArgs.model_validate_json(args.model_dump_json()) == args
