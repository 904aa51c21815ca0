"""What the arguments of the graph's builder refuse before anything is deployed."""

import pytest
import yaml

from ray_recsys.distributed.serve.app import AppArgs, build_app
from ray_recsys.errors import RecipeError
from tests.contracts import ROOT


@pytest.mark.parametrize("registry", ["$ABSENT_REGISTRY", "${ABSENT_REGISTRY}/registry"])
def test_a_variable_that_is_not_set_is_named(registry: str) -> None:
    with pytest.raises(RecipeError, match=r"variable ABSENT_REGISTRY is not set"):
        build_app(AppArgs(registry=registry))


def test_the_shipped_cluster_sets_what_the_shipped_configuration_names() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    configuration = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf8"))
    variable = configuration["applications"][0]["args"]["registry"].removeprefix("$")
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert f"{variable}=/mnt/recsys/" in cluster[commands][-1]
