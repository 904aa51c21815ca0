"""Commands that judge models: evaluate, compare."""

from typing import TYPE_CHECKING, Literal

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, live_bundle, recipe_option, takes_invocation
from ray_recsys.commands.output import Table, facts, scalars
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.core.evaluation.result import BucketMetrics, EvaluationResult, ModelMetrics
    from ray_recsys.core.evaluation.two_stage import TwoStageResult


@click.command()
@click.option(
    "--model",
    "models",
    type=INPUT,
    required=True,
    multiple=True,
    metavar="RUN|BUNDLE|REGISTRY",
    help="May be repeated; of a registry, its live bundle.",
)
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", help="Held-out items to rank.")
@recipe_option("--protocol", "evaluate.protocol", type=click.Choice(["full", "sampled"]), help="Candidates ranked.")
@click.option("--candidates", type=INPUT, metavar="FILE", help="Ranks these: user_id, item_id, label.")
@recipe_option("--max-users", "evaluate.max_users", type=click.IntRange(min=1), help="Evaluates about this many users.")
@click.option("--output", type=OUTPUT, metavar="FILE.parquet", help="Writes each user's ranks and best items.")
@click.option("--two-stage", is_flag=True, help="Measures recall of N candidates with rerank, for N = 50 to 1,000.")
@click.option("--html", type=OUTPUT, metavar="FILE", help="Writes the result as a self-contained page with plots.")
@takes_invocation
def evaluate(
    invocation: Invocation,
    *,
    models: tuple[Location, ...],
    data: Location,
    split: Literal["test", "validation"],
    candidates: Location | None,
    output: Location | None,
    two_stage: bool,
    html: Location | None,
) -> None:
    """Ranks held-out items by one or more models and the baselines Popularity and Random.

    All models see the same users and candidates: every item that the user has not seen, or a sample of them. Models of
    ratings are also evaluated by RMSE and MAE, against the users' and items' mean rating.
    """
    from ray_recsys.core.prepared import PreparedSet
    from ray_recsys.core.workflows.evaluate import evaluate as run
    from ray_recsys.reports.evaluation_html import write_html
    from ray_recsys.reports.page import require_matplotlib

    if html is not None:
        require_matplotlib()
    with invocation.connect() as executor:
        result = run(
            [live_bundle(model) for model in models],
            PreparedSet.open(data),
            invocation.recipe.evaluate,
            executor,
            seed=invocation.recipe.seed,
            split=split,
            candidates=candidates,
            output=output,
            two_stage=two_stage,
            report=invocation.report,
        )
    if html is not None:
        write_html(result, data, html)
        invocation.report(f"the page is {html}")
    invocation.answer(result, *evaluation_tables(result))


def evaluation_tables(result: "EvaluationResult") -> list[Table]:
    """Returns an evaluation for people: its facts, a row per metric with a column per model, buckets, both stages."""
    models = result.models
    labels = list(dict.fromkeys(label for model in models.values() for label in model.metrics))
    rows = [(label, *(_cell(model, label) for model in models.values())) for label in labels]
    title = f"{result.protocol} ranking of {result.split}, ± standard error over users"
    unknown = [] if result.unknown is None else [facts("not in the model's data", **result.unknown.model_dump())]
    tables = [facts(**scalars(result.model_dump(mode="json"))), *unknown, Table(("metric", *models), rows, title)]
    metric = next((label for label in ("NDCG@10", *labels) if label in labels), "")
    for of, buckets in (("user", "by_activity"), ("held-out item", "by_popularity")):
        tables += _bucket_table(models, of, buckets, metric)
    return tables + [_two_stage_table(label, model.two_stage) for label, model in models.items() if model.two_stage]


def _cell(model: "ModelMetrics | BucketMetrics", label: str) -> str:
    if label not in model.metrics:
        return ""
    error = model.standard_errors.get(label)
    return f"{model.metrics[label]:.4f}" + ("" if error is None else f" ±{error:.4f}")


def _bucket_table(models: "dict[str, ModelMetrics]", of: str, name: str, metric: str) -> list[Table]:
    columns: list[tuple[BucketMetrics, ...]] = [getattr(model, name) for model in models.values()]
    if not columns[0]:
        return []
    rows = [
        (buckets[0].training_interactions, buckets[0].count, *(_cell(bucket, metric) for bucket in buckets))
        for buckets in zip(*columns, strict=True)
    ]
    title = f"{metric} by training interactions of the {of}"
    return [Table(("training interactions", f"{of}s", *models), rows, title)]


def _two_stage_table(label: str, stages: "TwoStageResult") -> Table:
    enough = f"{stages.smallest_sufficient:,} candidates keep" if stages.smallest_sufficient else "none of these keeps"
    title = (
        f"{label}: NDCG@10 {stages.full_ndcg:.4f} over the whole catalogue, {stages.recall_ndcg:.4f} by recall alone; "
        f"{enough} 99 %"
    )
    header = ("candidates", "candidate recall", "NDCG@10", "share of full", "gain over recall alone", "p")
    rows = [
        (
            point.num_candidates,
            point.candidate_recall,
            point.ndcg,
            f"{point.share_of_full:.2%}",
            f"{point.gain:+.4f} ±{point.gain_standard_error:.4f}",
            f"{point.gain_p_value:.2g}",
        )
        for point in stages.points
    ]
    return Table(header, rows, title)


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--recipes", type=INPUT, multiple=True, required=True, metavar="FILE...", help="Recipes to compare.")
@click.argument("more_recipes", type=INPUT, nargs=-1, metavar="")
@click.option("--output", type=OUTPUT, required=True, metavar="DIR", help="Directory of runs and reports.")
@click.option("--seeds", "num_seeds", type=click.IntRange(min=1), default=3, help="Number of seeds per recipe.")
@click.option("--resamples", "num_resamples", type=click.IntRange(min=100), default=2000, help="Bootstrap resamples.")
@click.option("--max-seconds", type=click.FloatRange(min=0, min_open=True), help="Budget of each training's epochs.")
@recipe_option("--protocol", "evaluate.protocol", type=click.Choice(["full", "sampled"]), help="Candidates ranked.")
@recipe_option("--max-users", "evaluate.max_users", type=click.IntRange(min=1), help="Evaluates about this many users.")
@takes_invocation
def compare(
    invocation: Invocation,
    *,
    data: Location,
    recipes: tuple[Location, ...],
    more_recipes: tuple[Location, ...],
    output: Location,
    num_seeds: int,
    num_resamples: int,
    max_seconds: float | None,
) -> None:
    """Trains recipes with several seeds and compares them on the same test users.

    Each recipe's [model], [feed] and [train] count, without a refit; protocol, workers and the first seed are those of
    --recipe and --set, the same for all. Intervals come from a paired bootstrap over users. Repeat an interrupted
    comparison: what is finished in --output is kept.
    """
    from ray_recsys.config.files import load_recipe
    from ray_recsys.distributed.comparing import compare as run
    from ray_recsys.distributed.comparing import name_recipes
    from ray_recsys.reports.comparison_tables import comparison_tables

    files = [*recipes, *more_recipes]
    named = dict(zip(name_recipes(files), map(load_recipe, files), strict=True))
    with invocation.connect() as executor:
        result = run(
            data,
            output,
            named,
            invocation.recipe,
            executor,
            num_seeds=num_seeds,
            num_resamples=num_resamples,
            max_seconds=max_seconds,
            report=invocation.report,
        )
    invocation.answer(result, *(Table(*table) for table in comparison_tables(result)))
