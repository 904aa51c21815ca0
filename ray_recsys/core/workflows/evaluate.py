"""Evaluation of runs, bundles and the baselines: every model on the same users and candidates.

The users are divided into units that run as independent tasks (see `evaluation_units`).
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.evaluation.baselines import Random, fit_mean_rating
from ray_recsys.core.evaluation.candidate_lists import CandidateLists
from ray_recsys.core.evaluation.candidates import Split
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.protocols import protocol_label
from ray_recsys.core.evaluation.rankings_file import rankings_schema
from ray_recsys.core.evaluation.result import EvaluationResult, ModelMetrics, UnknownCounts
from ray_recsys.core.evaluation.sums import Frame
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.models.popularity import popularity_of, recent_popularity_of
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import ITEMS, PreparedSet
from ray_recsys.core.table_files import check_ending, write_table_file
from ray_recsys.core.workflows.evaluation_units import MEAN_RATING, GivenLists, Scorers, SplitUsers, UnitResult, Work
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.errors import ArtifactError, EmptyDataError, InputError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import LocationLike


def evaluate(
    models: Sequence[LocationLike],
    prepared: PreparedSet,
    recipe: EvaluateRecipe,
    executor: Executor,
    *,
    seed: int,
    split: Split = "test",
    candidates: LocationLike | None = None,
    output: LocationLike | None = None,
    two_stage: bool = False,
    baselines: bool = True,
    num_resamples: int = 0,
    report: Reporter = silent,
) -> EvaluationResult:
    """Returns the metrics of runs or bundles, of Popularity and of Random.

    Args:
        models: Runs or bundles.
        prepared: The prepared set that they were trained on.
        recipe: Protocol and Ks.
        executor: Runs the units of users.
        seed: Of sampled candidates and of the order of ties.
        split: Held-out items that are ranked.
        candidates: File of candidate lists (user_id, item_id, label), in place of the split and the protocol.
        output: Parquet file of each user's ranks and top K to write; see `core.evaluation.rankings_file`.
        two_stage: Also measure recall(N) → rerank of each model against reranking the whole catalogue.
        baselines: Whether to evaluate the baselines too.
        num_resamples: Resamples of the users to keep the metrics of, for intervals; see `core.evaluation.bootstrap`.
        report: Progress.

    Raises:
        ArtifactError: A model or the data cannot be used, or they do not belong together.
        DataError: The candidate file cannot be used.
        EmptyDataError: No user has a held-out item.
        InputError: `output` or `two_stage` with `candidates`.
        StageError: A score is NaN or infinite.
    """
    start_s = time.monotonic()
    _check_goes_together(candidates, output, two_stage=two_stage)
    opened = _open(models, prepared, allow_refit=candidates is not None)
    prepared.verify()
    scorers = _scorers(opened, prepared, recipe, executor, seed, baselines=baselines)
    frame, lists = None, None
    if candidates is None:
        frame = Frame.of(prepared, executor)
        schema = None if output is None else _schema(prepared, recipe, split, seed)
        shared = executor.share(frame)
        work: Work = SplitUsers(prepared, recipe, split, seed, scorers, shared, schema, two_stage, num_resamples)
    else:
        lists = _read_lists(candidates, prepared, report)
        work = GivenLists(executor.share(lists), lists.num_lists, recipe, seed, scorers)
    total = _run(work, executor, f"evaluating {', '.join(map(str, models))} on {prepared.location}", output, report)
    return EvaluationResult(
        protocol=protocol_label(recipe) if candidates is None else "given",
        models=_metrics(total, frame, prepared.manifest.num_users),
        seconds=round(time.monotonic() - start_s, 3),
        unknown=None if lists is None else UnknownCounts.of(lists),
        **_sizes(total, prepared, split),
    )


def _scorers(
    opened: Sequence[TrainedModel],
    prepared: PreparedSet,
    recipe: EvaluateRecipe,
    executor: Executor,
    seed: int,
    *,
    baselines: bool,
) -> Scorers:
    """Returns the models and the baselines by label."""
    shared = executor.share(_baselines(opened, prepared, recipe, executor, seed) if baselines else {})
    return Scorers(_labelled(opened), shared, executor.num_cpus)


def _sizes(total: UnitResult, prepared: PreparedSet, split: Split) -> dict[str, Any]:
    """Returns the split, and the numbers of ranked users, held-out items and candidates: the same for every model."""
    first = next(iter(total.sums.values())).total if total.sums else MetricSums()
    if not first.num_users:
        raise EmptyDataError(
            f"{prepared.location}: no user has held-out {split} items",
            remedy="choose another split, or prepare with one",
        )
    return {
        "split": split,
        "num_users": first.num_users,
        "num_eligible_users": total.num_eligible,
        "num_held_out": first.num_held_out,
        "candidates_per_list": first.num_candidates / first.num_lists,
    }


def _metrics(total: UnitResult, frame: Frame | None, num_training_users: int) -> dict[str, ModelMetrics]:
    return {
        label: ModelMetrics.of(sums, frame, num_training_users, total.two_stage.get(label))
        for label, sums in total.sums.items()
    }


def _check_goes_together(candidates: LocationLike | None, output: LocationLike | None, *, two_stage: bool) -> None:
    if candidates is not None and (output is not None or two_stage):
        option = "--output" if output is not None else "--two-stage"
        raise InputError(f"{option} and --candidates exclude each other", remedy="leave one of them out")


def _open(models: Sequence[LocationLike], prepared: PreparedSet, *, allow_refit: bool) -> list[TrainedModel]:
    opened = [TrainedModel.open(path) for path in models]
    for model in opened:
        model.check_fits(prepared)
        if model.refit and not allow_refit:
            raise ArtifactError(
                f"{model.path} was refit on everything: it has seen the held-out items of {prepared.location}",
                remedy="evaluate a run without train.refit, or give --candidates that it has not seen",
            )
    return opened


def _read_lists(path: LocationLike, prepared: PreparedSet, report: Reporter) -> CandidateLists:
    lists = CandidateLists.read(path, prepared)
    report(f"{lists.num_lists:,} candidate lists, {lists.users.num_unknown:,} of them of unknown users")
    return lists


def _baselines(
    opened: Sequence[TrainedModel], prepared: PreparedSet, recipe: EvaluateRecipe, executor: Executor, seed: int
) -> dict[str, Scorer]:
    """Returns the baselines by label: Popularity, recent or all, Random and, for models of ratings, mean rating."""
    baselines: dict[str, Scorer] = {}
    if any(model.predicts_ratings for model in opened):
        baselines[MEAN_RATING] = fit_mean_rating(prepared, executor)
    counts = prepared.item_counts()
    baselines["Popularity"] = popularity_of(counts, prepared.manifest.num_users)
    if prepared.manifest.split.get("method") == "global_time":
        recent = recent_popularity_of(prepared, recipe.popularity_half_life_days, executor)
        baselines["Recent popularity"] = recent
    return baselines | {"Random": Random(len(counts), seed)}


def _schema(prepared: PreparedSet, recipe: EvaluateRecipe, split: Split, seed: int) -> pa.Schema:
    with prepared.on_disk(prepared.manifest.partitions[0].file) as users, prepared.on_disk(ITEMS) as items:
        user_id = pq.read_schema(users).field("user_id").type
        item_id = pq.read_schema(items).field("item_id").type
    facts: dict[str, object] = {
        "protocol": protocol_label(recipe),
        "split": split,
        "seed": seed,
        "ks": sorted(set(recipe.ks)),
        "input_fingerprint": prepared.manifest.input_fingerprint,
    }
    return rankings_schema(user_id, item_id, facts)


def _labelled(models: Sequence[TrainedModel]) -> dict[str, TrainedModel]:
    """Returns the models by label; a label that two models share is disambiguated by the directory's name."""
    labels = [MODELS[model.name].label for model in models]
    pairs = list(zip(labels, models, strict=True))
    return {label if labels.count(label) == 1 else f"{label} ({model.path.name})": model for label, model in pairs}


def _run(work: Work, executor: Executor, stage: str, output: LocationLike | None, report: Reporter) -> UnitResult:
    """Returns the result over all users; with an output, units come in order and are written as they do."""
    total = UnitResult()

    def added(results: Iterable[UnitResult]) -> Iterator[pa.RecordBatch]:
        nonlocal total
        for result in results:
            total = total + result
            report(f"{next(iter(total.sums.values())).total.num_users:,} users ranked")
            yield from result.rankings

    if output is None:
        for _ in added(executor.map(work.evaluate, work.num_units, stage=stage)):
            pass
    else:
        assert isinstance(work, SplitUsers)
        assert work.rankings is not None
        check_ending(output, (".parquet",))
        units = executor.stream(work.evaluate, range(work.num_units), stage=stage)
        num_rows = write_table_file(output, work.rankings, added(units))
        report(f"{num_rows:,} rows written to {output}")
    return total
