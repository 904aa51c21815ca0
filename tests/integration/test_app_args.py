"""Arguments that `build_app` refuses before anything is deployed."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from ray_recsys.config import ServeRecipe
from ray_recsys.distributed.serve.app import AppArgs, build_app
from ray_recsys.errors import RecipeError, RegistryError
from tests.bundles import publish_bundle
from tests.contracts import ROOT
from tests.factories import make_prepared_set


def test_a_recipe_and_a_section_are_not_mixed(tmp_path: Path) -> None:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    with pytest.raises(RecipeError, match="give only one"):
        build_app(AppArgs(registry=str(tmp_path / "registry"), recipe="recipe.toml", serve=ServeRecipe()))


def test_a_misspelt_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="registri"):
        AppArgs.model_validate({"registry": "here", "registri": "there"})


def test_a_registry_without_a_live_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no live bundle"):
        build_app(AppArgs(registry=str(tmp_path)))


@pytest.mark.parametrize("registry", ["$ABSENT_REGISTRY", "${ABSENT_REGISTRY}/registry"])
def test_a_variable_that_is_not_set_is_named(registry: str) -> None:
    with pytest.raises(RecipeError, match=r"variable ABSENT_REGISTRY is not set"):
        build_app(AppArgs(registry=registry))


def test_the_shipped_cluster_sets_what_the_shipped_configuration_names() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    configuration = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf8"))
    variable = configuration["applications"][0]["args"]["registry"].removeprefix("$")
    options = cluster["docker"]["run_options"]
    assert any(option.startswith(f"-e {variable}=s3://") for option in options)
