"""Recipes as TOML files: read, with `section.key=value` overrides laid over them, and written."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w
from pydantic import ValidationError

from ray_recsys.config.messages import describe_errors
from ray_recsys.config.recipe import DEFAULT_MODEL, Recipe
from ray_recsys.errors import RecipeError
from ray_recsys.storage.location import Location, LocationLike


def load_recipe(path: LocationLike | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of a TOML file (or the defaults) with `section.key=value` overrides laid over it.

    Raises:
        RecipeError: A file that is missing or no TOML, an unknown key, or a value out of range; names the key,
            the value, the range and the file.
    """
    data: dict[str, Any] = {}
    if path is not None:
        from ray_recsys.storage.files import read_text  # noqa: PLC0415 - pyarrow, which `--help` does not need

        try:
            data = tomllib.loads(read_text(Location.of(path)))
        except OSError as error:
            raise RecipeError(f"cannot read recipe {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} is not valid TOML: {error}") from error
    for override in overrides:
        _apply_override(data, override)
    return parse_recipe(data, origin=str(path) if path else "the defaults and --set")


def parse_recipe(data: Mapping[str, Any], origin: str) -> Recipe:
    """Returns the recipe described by a mapping; `origin` names its source in errors.

    Raises:
        RecipeError: An unknown key or a value out of range.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(describe_errors(error, Recipe.model_json_schema(), origin)) from None


def dump_recipe(recipe: Recipe) -> str:
    """Returns what differs from the defaults as TOML that `load_recipe` reads back to an equal recipe."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    if recipe.model.name != DEFAULT_MODEL:
        data["model"] = {"name": recipe.model.name, **data.get("model", {})}
    return tomli_w.dumps(_none_as_word(data))


def dump_full_recipe(recipe: Recipe) -> str:
    """Returns every value, defaults included, as TOML that `load_recipe` reads back to an equal recipe."""
    return tomli_w.dumps(_none_as_word(recipe.model_dump(mode="json")))


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Returns the recipe with other values of some keys, e.g. `{"train.learning_rate": 0.01}`.

    Raises:
        RecipeError: An unknown key or a value out of range.
    """
    data = recipe.model_dump()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = data
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    return parse_recipe(data, origin="a value of the search space")


def _none_as_word(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _none_as_word(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_none_as_word(inner) for inner in value]
    return "none" if value is None else value


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {override!r}: write section.key=value, e.g. --set train.epochs=5")
    if key.strip() == "model.name":
        _choose_model(data, text.strip().strip("\"'"))
        return
    *sections, name = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise RecipeError(f"--set {override!r}: {section} is a value, not a section")
    try:
        data[name] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        data[name] = text


def _choose_model(data: dict[str, Any], name: str) -> None:
    """Sets the model; keys that the file gives for another model do not apply to it."""
    section = data.get("model")
    if not isinstance(section, dict) or section.get("name", DEFAULT_MODEL) != name:
        data["model"] = {}
    data["model"]["name"] = name
