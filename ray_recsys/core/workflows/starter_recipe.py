"""A first recipe for an undescribed log: each guess is commented with its reason and the alternatives."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import InputRecipe
from ray_recsys.core.inspecting.log_guess import Guess, LogGuess, guess_columns
from ray_recsys.core.inspecting.log_sample import LogSample, read_sample
from ray_recsys.errors import InputError
from ray_recsys.storage.files import atomic_file

RECIPE = "recipe.toml"
SERVE_CONFIG = "serve_config.yaml"
_SHIPPED_SERVE_CONFIG = Path(__file__).parents[2] / "recipes" / SERVE_CONFIG


class StarterFiles(BaseModel):
    """The written files and the chosen columns."""

    model_config = ConfigDict(frozen=True)

    recipe: Path
    serve_config: Path
    user_column: str | None
    item_column: str | None
    timestamp_column: str | None
    rating_column: str | None


def write_starter(directory: Path, inputs: Sequence[str], known: InputRecipe) -> StarterFiles:
    """Writes `recipe.toml` and `serve_config.yaml` for a log.

    Args:
        directory: Made if needed.
        inputs: Files, folders or URIs of the log; only its first rows are read.
        known: Columns of users and items that are set in it are not guessed.

    Raises:
        InputError: One of the files exists already.
        DataError: The log cannot be read, or has no column for users or items.
    """
    recipe, config = directory / RECIPE, directory / SERVE_CONFIG
    if existing := [str(path) for path in (recipe, config) if path.exists()]:
        raise InputError(f"{existing[0]} exists already", remedy="give another directory, or remove it first")
    given = {name: getattr(known, f"{name}_column") for name in ("user", "item") if _is_set(known, name)}
    sample = read_sample(inputs)
    guess = guess_columns(sample, **given)
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in ((recipe, "\n".join(_lines(sample, guess, inputs)) + "\n"), (config, _serve_config())):
        with atomic_file(path) as unfinished:
            unfinished.write_text(text, encoding="utf8")
    return StarterFiles(
        recipe=recipe,
        serve_config=config,
        user_column=guess.user.column,
        item_column=guess.item.column,
        timestamp_column=guess.time.column,
        rating_column=guess.rating.column,
    )


def _is_set(known: InputRecipe, name: str) -> bool:
    return f"{name}_column" in known.model_fields_set


def _serve_config() -> str:
    return _SHIPPED_SERVE_CONFIG.read_text(encoding="utf8")


def _lines(sample: LogSample, guess: LogGuess, inputs: Sequence[str]) -> Iterator[str]:
    yield f"# A recipe for {', '.join(inputs)}, by `ray-recsys init`."
    yield "# Its lines are guesses: read them, then try `ray-recsys recipe check --recipe THIS_FILE --input LOG`."
    yield "# `ray-recsys recipe explain SECTION` lists the other settings."
    yield "#"
    yield f"# Columns in the first {sample.num_rows:,} rows of {sample.file.uri}:"
    width = max(len(column.name) for column in sample.columns)
    for column in sample.columns:
        shown = json.dumps(", ".join(column.examples), ensure_ascii=False)
        yield f"#   {column.name:<{width}}  {column.type}, {column.num_distinct:,} distinct, e.g. {shown}"
    yield from ("", "[input]", *_format_lines(sample))
    yield _column_line("user_column", guess.user)
    yield _column_line("item_column", guess.item)
    yield _column_line("timestamp_column", guess.time)
    if guess.time_unit != "auto":
        yield f'timestamp_unit = "{guess.time_unit}"          # guess: by the size of its numbers'
    yield _column_line("rating_column", guess.rating)
    yield from _advice(guess)


def _format_lines(sample: LogSample) -> Iterator[str]:
    if sample.separator is not None:
        yield f"separator = {json.dumps(sample.separator)}  # guess: the most frequent mark of the first line"
    if sample.column_names:
        names = json.dumps(list(sample.column_names), ensure_ascii=False)
        yield f"column_names = {names}  # guess: the first line has a number, so it is no header"


def _column_line(key: str, guess: Guess) -> str:
    value = json.dumps(guess.column or "none", ensure_ascii=False)
    also = f"; alternatives: {', '.join(guess.alternatives)}" if guess.alternatives else ""
    return f"{key} = {value}  # {'guess: ' if guess.reason != 'given' else ''}{guess.reason}{also}".replace("\n", " ")


def _advice(guess: LogGuess) -> Iterator[str]:
    if guess.time.column is None:
        yield from ("", "[split]", 'method = "random_per_user"      # without times no other split is possible')
    yield from ("", "[prepare]")
    if guess.rating.column is not None:
        yield "# min_rating = 4                 # only these count as interactions; by default all do"
    yield "# min_interactions_per_item = 5    # rarer items are too little to learn from"
    yield "# min_interactions_per_user = 3"
    yield from ("", "[model]", '# name = "neumf"                 # or ease, ials, item_knn, user_knn, mf, lightgcn, …')
    yield from ("", "[cluster]", "# num_workers = 2                  # train workers; use_gpu = true gives each a GPU")
