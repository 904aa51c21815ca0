"""What a prepared set was made from, as one digest: equal means that making it again would give the same."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import SCHEMA_VERSION, PreparedManifest
from ray_recsys.core.preparing.log_files import LogFile

_SECTIONS = ("input", "items", "prepare", "split")


def fingerprint(files: Sequence[LogFile], side_files: Sequence[LogFile], recipe: Recipe) -> str:
    """Returns the digest (hex sha256) of files, by name, size and time of change, and of the recipe's parts."""
    identity = {
        "schema_version": SCHEMA_VERSION,
        "files": [[file.uri, file.format, file.bytes, file.version] for file in files],
        "side_files": [[file.uri, file.format, file.bytes, file.version] for file in side_files],
        "recipe": _relevant(recipe),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def describe_difference(manifest: PreparedManifest, recipe: Recipe) -> str:
    """Returns what tells a finished prepared set from the one asked for, e.g. `split.method: was 'a', now 'b'`."""
    then, now = _flat(_relevant(manifest.recipe)), _flat(_relevant(recipe))
    changed = [f"{key}: was {then[key]!r}, now {now[key]!r}" for key in now if then[key] != now[key]]
    return "; ".join(changed) or "the input files differ (names, sizes or times of change)"


def _relevant(recipe: Recipe) -> dict[str, Any]:
    data = recipe.model_dump(mode="json", include={*_SECTIONS})
    return {"seed": recipe.seed, **data} if recipe.split.method == "random_per_user" else {"seed": None, **data}


def _flat(data: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {"seed": data["seed"]}
    for section in _SECTIONS:
        flat.update({f"{section}.{key}": value for key, value in data[section].items()})
    return flat
