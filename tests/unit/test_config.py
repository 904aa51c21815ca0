"""Recipes: what is wrong is named; what is right survives being written and read."""

import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from ray_recsys.config import DropRule, ItemKNNRecipe, NeuMFRecipe, Recipe
from ray_recsys.config.files import dump_recipe, load_recipe, parse_recipe, with_values
from ray_recsys.errors import RecipeError

WRONG = [
    ("[train]\nepochs = 0", "train.epochs = 0: must be a whole number > 0"),
    ("[train]\nepochs = 2.5", "train.epochs = 2.5: must be a whole number > 0"),
    ("[train]\nepochs = true", "train: epochs = true"),
    ("[train]\nepohcs = 1", "train.epohcs: unknown key; did you mean epochs? known here: batch_size, "),
    ("[train]\nlearning_rate = inf", "train.learning_rate = inf: must be a finite number > 0"),
    ("[train]\nearly_stopping_epochs = 0", "must be a whole number > 0 or none"),
    ("[cluster]\nuse_gpu = 7", "cluster.use_gpu = 7: must be true or false"),
    ("[model]\ndropout = 1.0", "model.dropout = 1.0: must be a finite number >= 0, < 1"),
    ("[model]\nmlp_layers = []", "must be a list (at least 1, each a whole number > 0)"),
    ("[model]\nmlp_layers = [8, -1]", "model.mlp_layers.1 = -1: must be a whole number > 0"),
    ("[split]\nmethod = 'loo'", "must be one of leave_one_out, global_time, random_per_user"),
    ("[serve]\nport = 70000", "serve.port = 70000: must be a whole number >= 0, <= 65535"),
    ("[serve]\nmax_candidates = 100", "serve: num_candidates must be <= max_candidates = 100"),
    ("[serve]\nmax_k = 2001", "serve: max_k must be <= max_candidates = 2000"),
    ("seed = 9223372036854775808", "must be a whole number >= 0, < 9223372036854775808"),
    ("sede = 1", "sede: unknown key; did you mean seed?"),
    ("train = 3", "train = 3: must be a section with keys among batch_size"),
    ("[input]\nseparator = '|||'", "must be a text of 1 to 2 characters or none"),
    ("[input]\nuser_column = 5", "input.user_column = 5: must be a text"),
    ("[[input.drop]]\nreason = 'x'\ncolumn = 'c'", "input.drop.0: a drop rule needs one of"),
    ("[[input.drop]]\nreason = 'X!'\ncolumn = 'c'\nis_null = true", "input.drop.0.reason = 'X!': must be a text that"),
    ("[[input.drop]]\nreason = 'x'\nis_null = true", "input.drop.0.column is missing: give a text"),
    ("[tune.space]\n'train.epochs' = {uniform = [2, 1]}", "uniform = [2.0, 1.0]: the first number must be below"),
    ("[tune.space.train]\nlearning_rate = {log_uniform = [0, 1]}", "must be two rising numbers above 0"),
    (
        "[model]\nname = 'svd'",
        "model.name = 'svd': must be one of ease, gmf, ials, item_knn, lightgcn, mf, mlp, neumf, popularity, user_knn",
    ),
    ("[model]\nname = 'item_knn'\nshrink = 1", "model.shrink: unknown key; did you mean shrinkage?"),
    ("[input]\ntimestamp_column = 'none'", "split.method = 'leave_one_out' needs times"),
    ("[train]\nobjective = 'explicit'", "train.objective = 'explicit': needs input.rating_column"),
    ("[split]\nvalidation_from_s = 9\ntest_from_s = 8", "split: validation_from_s = 9 is after test_from_s = 8"),
    ("[train]\noptimizer = 'sparse_adam'\nema_decay = 0.9", "train: ema_decay averages every row at every step"),
    ("[cluster]\nmin_workers = 3", "cluster: min_workers = 3 exceeds num_workers = 2"),
    ("[model.pretrain]\ngmf = 'none'\nmlp = 'none'", "model.pretrain: neither gmf nor mlp is trained first"),
    ("[input]\nencoding = 'latin-99'", "input: encoding = 'latin-99' is not known"),
    ("[input]\nseparator = '→'", "input: separator = '→' is not ASCII"),
    ("[prepare]\nmin_rating = 3", "prepare.min_rating: needs input.rating_column"),
    ("[prepare]\ndeduplicate = 'highest_rating'", "prepare.deduplicate = 'highest_rating': needs input.rating_column"),
    (
        "[split]\nvalidation_fraction = 0.5\ntest_fraction = 0.5",
        "split: validation_fraction + test_fraction = 1 leaves",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[text.splitlines()[-1] for text, _ in WRONG])
def test_wrong_recipe_is_refused_with_key_value_range_and_file(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "my_recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert expected in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"[train]\n[train]"])
def test_file_that_is_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.toml is not valid TOML"):
        load_recipe(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.toml: No such file"):
        load_recipe(tmp_path / "absent.toml")


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RecipeError, match=r"train\.epochs = 0.*; serve\.port = -1"):
        parse_recipe({"train": {"epochs": 0}, "serve": {"port": -1}}, "here")


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[train]\nepochs = 3\nlearning_rate = 0.5\n")
    overrides = [
        "train.epochs=7",
        "train.early_stopping_epochs=none",
        "model.mlp_layers=[8, 4]",
        "input.user_column=customer",  # bare words need no quotes
        'input.drop=[{reason = "test", column = "c", at_most = 0}]',
    ]
    recipe = load_recipe(path, overrides)
    assert (recipe.train.epochs, recipe.train.learning_rate, recipe.train.early_stopping_epochs) == (7, 0.5, None)
    assert isinstance(recipe.model, NeuMFRecipe)
    assert (recipe.model.mlp_layers, recipe.input.user_column) == ((8, 4), "customer")
    assert recipe.input.drop == (DropRule(reason="test", column="c", at_most=0),)


def test_another_model_drops_the_files_keys_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[model]\nembedding_dim = 8\n[train]\nepochs = 3\n")
    other = load_recipe(path, ["model.name=item_knn", "model.shrinkage=5"])
    assert other.model == ItemKNNRecipe(shrinkage=5)
    assert other.train.epochs == 3
    same = load_recipe(path, ["model.name=neumf"])
    assert same.model == NeuMFRecipe(embedding_dim=8)


def test_values_of_a_search_space_are_laid_over_a_recipe() -> None:
    recipe = with_values(Recipe(), {"model.embedding_dim": 16, "train.learning_rate": 0.5, "seed": 3})
    assert isinstance(recipe.model, NeuMFRecipe)
    assert (recipe.model.embedding_dim, recipe.train.learning_rate, recipe.seed) == (16, 0.5, 3)
    with pytest.raises(RecipeError, match=r"model\.width: unknown key"):
        with_values(Recipe(), {"model.width": 16})
    with pytest.raises(RecipeError, match="modle: unknown key; did you mean model"):
        with_values(Recipe(), {"modle.embedding_dim": 16})


@pytest.mark.parametrize(
    "override", ["train.epochs", "train.epochs.=3", "train.epochs.deep=1", "train.epochs=0", "nothing.here=1"]
)
def test_wrong_override_is_refused(tmp_path: Path, override: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[train]\nepochs = 3\n")
    with pytest.raises(RecipeError, match=override.partition("=")[0].partition(".")[0]):
        load_recipe(path, [override])


def _optional_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _optional_keys(annotation, f"{prefix}{name}.")
        elif isinstance(annotation, types.UnionType) and type(None) in typing.get_args(annotation):
            keys.append(prefix + name)
    return keys


@pytest.mark.parametrize("key", _optional_keys(Recipe))
def test_every_optional_key_takes_none_and_keeps_it(tmp_path: Path, key: str) -> None:
    overrides = [f"{key}=none", "split.method=random_per_user"]
    recipe = load_recipe(None, overrides)
    section, name = key.split(".")
    assert getattr(getattr(recipe, section), name) is None
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


texts = st.text(min_size=1, max_size=8).filter(lambda text: text != "none")
positive = st.floats(min_value=1e-300, max_value=1e300)
drop_rules = st.builds(
    DropRule,
    reason=st.from_regex(r"^[a-z][a-z0-9_]*\Z"),
    column=texts,
    matches=st.none() | texts,
    at_most=st.floats(allow_nan=False, allow_infinity=False),
)
recipes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "input": st.fixed_dictionaries(
            {"user_column": texts, "rating_column": texts, "drop": st.lists(drop_rules, max_size=2).map(tuple)}
        ),
        "model": st.fixed_dictionaries({"mlp_layers": st.lists(st.integers(1, 4096), min_size=1, max_size=4)})
        | st.fixed_dictionaries({"name": st.just("item_knn"), "shrinkage": st.floats(0, 1e6)})
        | st.just({"name": "popularity"}),
        "feed": st.fixed_dictionaries({"recency_half_life": st.none() | positive}),
        "train": st.fixed_dictionaries(
            {
                "objective": st.sampled_from(["implicit", "explicit"]),
                "learning_rate": positive,
                "early_stopping_epochs": st.none() | st.integers(1, 99),
            }
        ),
        "cluster": st.fixed_dictionaries({"use_gpu": st.booleans()}),
    }
)


@given(recipes)
def test_dumped_recipe_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(data)
    path = tmp_path_factory.getbasetemp() / "dumped.toml"
    path.write_text(dump_recipe(recipe), encoding="utf8")
    assert load_recipe(path) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_default_recipe_dumps_to_nothing() -> None:
    assert dump_recipe(Recipe()) == ""
