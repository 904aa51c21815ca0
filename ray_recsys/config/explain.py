"""Documentation of a recipe's keys: range, default and description, from the sections' docstrings."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_recsys.config.messages import accepted, node_at
from ray_recsys.config.recipe import Recipe
from ray_recsys.errors import RecipeError


class KeyFacts(BaseModel):
    """One key of a recipe."""

    model_config = ConfigDict(frozen=True)

    key: str
    accepts: str
    default: Any
    value: Any
    """In the recipe that was asked about."""
    description: str


def explain(key: str, recipe: Recipe) -> list[KeyFacts]:
    """Returns a key, or every key of a section; those of `model` are the keys of the recipe's model.

    Args:
        key: As in `--set`, e.g. `train.learning_rate`, `train`, or empty for all.
        recipe: Whose values are shown.

    Raises:
        RecipeError: There is no such key; names the nearest ones.
    """
    known = _all_keys(recipe)
    found = [facts for facts in known if not key or facts.key == key or facts.key.startswith(f"{key}.")]
    if not found:
        names = [facts.key for facts in known] + list(Recipe.model_fields)
        nearest = difflib.get_close_matches(key, names, n=3) or [name for name in names if name.endswith(f".{key}")]
        remedy = f"did you mean {', '.join(nearest)}?" if nearest else "`ray-recsys recipe explain` lists all keys"
        raise RecipeError(f"{key!r} is no key of a recipe", remedy=remedy)
    return found


def _all_keys(recipe: Recipe) -> list[KeyFacts]:
    schema, values = Recipe.model_json_schema(), recipe.model_dump(mode="json")
    defaults = Recipe().model_dump(mode="json") | {"model": type(recipe.model)().model_dump(mode="json")}
    facts = []
    for section, value in values.items():
        path = [section, recipe.model.name] if section == "model" else [section]
        if not isinstance(value, dict):
            facts.append(_facts(section, path, schema, defaults[section], value))
            continue
        for name, inner in value.items():
            facts.append(_facts(f"{section}.{name}", [*path, name], schema, defaults[section].get(name), inner))
    return facts


def _facts(key: str, path: list[str], schema: dict[str, Any], default: Any, value: Any) -> KeyFacts:
    description = " ".join(str(node_at(schema, path).get("description", "")).split())
    return KeyFacts(key=key, accepts=accepted(schema, path), default=default, value=value, description=description)
