"""Commands that train models: train, tune."""

from pathlib import Path

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, live_bundle, takes_invocation
from ray_recsys.commands.output import facts, scalars
from ray_recsys.errors import InputError


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="The run to write.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted run.")
@click.option("--refit", "finished", type=INPUT, metavar="RUN", help="Trains this finished run again on everything.")
@click.option("--warm-start", type=INPUT, metavar="BUNDLE", help="Begins with this bundle's (or registry's) weights.")
@takes_invocation
def train(
    invocation: Invocation, *, data: Path, output: Path, resume: bool, finished: Path | None, warm_start: Path | None
) -> None:
    """Trains the recipe's model on a prepared set.

    Models with gradients are trained data-parallel by Ray Train, with checkpoints and curves; the others are fitted.
    `--set model.name=NAME` chooses the model. With `train.refit` the model is trained again on everything, held-out
    interactions included, for the number of epochs that validation chose.
    """
    from ray_recsys.distributed.training import refit
    from ray_recsys.distributed.training import train as run

    if resume and finished is not None:
        raise InputError("--resume and --refit exclude each other", remedy="resume the refit's own run with --resume")
    if warm_start is not None and finished is not None:
        raise InputError("--warm-start and --refit exclude each other", remedy="a refit begins as its run began")
    recipe, report = invocation.recipe, invocation.report
    with invocation.connect() as executor:
        if finished is None:
            bundle = None if warm_start is None else live_bundle(warm_start)
            result = run(data, output, recipe, executor, resume=resume, warm_start=bundle, report=report)
        else:
            result = refit(finished, data, output, recipe.cluster, executor, report=report)
    invocation.answer(result, facts(**scalars(result.model_dump(mode="json"))))


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="Where trials and the best recipe go.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted search.")
@takes_invocation
def tune(invocation: Invocation, *, data: Path, output: Path, resume: bool) -> None:
    """Searches for a better recipe with Ray Tune.

    Tries values of the keys under [tune.space], by default embedding width and learning rate; stops poor trials early
    (ASHA) and writes the best recipe as TOML.
    """
    from ray_recsys.distributed.tuning import tune as run

    with invocation.connect():
        result = run(data, output, invocation.recipe, resume=resume, report=invocation.report)
    invocation.answer(
        result, facts(**scalars(result.model_dump(mode="json")), **result.best.values, **result.best.metrics)
    )
<<<<<<< HEAD


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
@takes_invocation
def evaluate(
    invocation: Invocation,
    *,
    models: tuple[Path, ...],
    data: Path,
    split: Literal["test", "validation"],
    candidates: Path | None,
    output: Path | None,
    two_stage: bool,
) -> None:
    """Ranks held-out items by one or more models, beside the baselines Popularity and Random.

    All see the same users and candidates: every item that the user has not seen, or a sample of them. Models of ratings
    are also judged by RMSE and MAE, beside the users' and items' mean rating.
    """
    from ray_recsys.core.prepared import PreparedSet
    from ray_recsys.core.workflows.evaluate import evaluate as run

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
    invocation.answer(result, *evaluation_tables(result))


def evaluation_tables(result: "EvaluationResult") -> list[Table]:
    """Returns an evaluation for people: its facts, a row per metric with a column per model, buckets, both stages."""
    models = result.models
    labels = list(dict.fromkeys(label for model in models.values() for label in model.metrics))
    rows = [(label, *(_cell(model, label) for model in models.values())) for label in labels]
    title = f"{result.protocol} ranking of {result.split}, ± standard error over users"
    unknown = [] if result.unknown is None else [facts("not in the model's data", **result.unknown.model_dump())]
    tables = [facts(**_scalars(result.model_dump(mode="json"))), *unknown, Table(("metric", *models), rows, title)]
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


def _scalars(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if not isinstance(value, dict | list)}
=======
>>>>>>> main
