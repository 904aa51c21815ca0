"""Formats the errors of a recipe: the key, the value, what is accepted there, and the nearest known key.

Works on the JSON schema of the recipe alone.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

Schema = Mapping[str, Any]
Location = Sequence[str | int]

_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_WORDS = {"null": "none", "integer": "a whole number", "number": "a finite number", "boolean": "true or false"}


def describe_errors(error: ValidationError, schema: Schema, origin: str) -> str:
    """Returns one line that names every problem; `origin` is where the recipe came from."""
    problems = [_describe(problem, schema) for problem in error.errors(include_url=False)]
    return f"recipe ({origin}): " + "; ".join(problems)


def node_at(schema: Schema, location: Location) -> Schema:
    """Returns the schema of a key as its section gives it, with its description."""
    return _step(_find(schema, location[:-1]), location[-1])


def accepted(schema: Schema, location: Location) -> str:
    """Returns what the schema accepts at a location, e.g. `a number >= 0, < 1` or `one of full, sampled`."""
    return _accepted(_find(schema, location), schema)


def _describe(problem: Any, schema: Schema) -> str:
    location: Location = problem["loc"]
    key = ".".join(str(part) for level, part in enumerate(location) if not _is_tag(schema, location, level))
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key; {_suggest(str(location[-1]), _keys(schema, location[:-1]))}"
    if problem["type"] == "union_tag_invalid":
        known = ", ".join(sorted(_find(schema, location)["discriminator"]["mapping"]))
        return f"{key}.name = {problem['ctx']['tag']!r}: must be one of {known}"
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"{key} is missing: give {accepted(schema, location)}"
    return f"{key} = {problem['input']!r}: must be {accepted(schema, location)}"


def _is_tag(schema: Schema, location: Location, level: int) -> bool:
    """Whether a part of a location names a member of a union, which is no key."""
    before = _find(schema, location[:level]) if level else {}
    return "discriminator" in before or ("anyOf" in before and isinstance(location[level], str))


def _suggest(key: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{hint}known here: {', '.join(known)}"


def _keys(schema: Schema, location: Location) -> list[str]:
    return sorted(_find(schema, location).get("properties", {}))


def _find(schema: Schema, location: Location) -> Schema:
    node = _resolve(schema, schema)
    for part in location:
        node = _resolve(_step(node, part), schema)
    return node


def _step(node: Schema, part: str | int) -> Schema:
    if isinstance(part, int):
        found: Schema = node["items"]
    elif "discriminator" in node:
        found = {"$ref": node["discriminator"]["mapping"][part]}
    elif "anyOf" in node:  # pydantic names the member of the union that it tried
        found = next((choice for choice in node["anyOf"] if choice.get("$ref", "").endswith(f"/{part}")), {})
    elif "properties" in node:
        found = node["properties"][part]
    else:
        found = node.get("additionalProperties", {})
    return found


def _resolve(node: Schema, schema: Schema) -> Schema:
    if "$ref" in node:
        resolved: Schema = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        return resolved
    return node


def _accepted(node: Schema, schema: Schema) -> str:
    node = _resolve(node, schema)
    if "anyOf" in node:
        return " or ".join(_accepted(choice, schema) for choice in node["anyOf"])
    if "const" in node:
        return str(node["const"])
    if "enum" in node:
        return f"one of {', '.join(node['enum'])}"
    bounds = ", ".join(f"{sign} {_number(node[name])}" for name, sign in _BOUNDS.items() if name in node)
    return f"{_kind(node, schema)} {bounds}".strip()


def _number(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)


def _kind(node: Schema, schema: Schema) -> str:
    kind = node.get("type", "")
    if kind == "array":
        least = f"at least {node['minItems']}, " if "minItems" in node else ""
        return f"a list ({least}each {_accepted(node['items'], schema)})"
    if kind == "object":
        known = sorted(node.get("properties", ()))
        return f"a section with keys among {', '.join(known)}" if known else "a section"
    return _WORDS.get(kind) or _text(node)


def _text(node: Schema) -> str:
    if "pattern" in node:
        return f"a text that matches {node['pattern']}"
    if "maxLength" in node:
        return f"a text of {node.get('minLength', 0)} to {node['maxLength']} characters"
    return "a text"
