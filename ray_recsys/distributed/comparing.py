"""`compare`: trains and evaluates recipes under the same protocol and compares them.

<output>/<recipe>/seed-<n>/        the run of a recipe with a seed
<output>/<recipe>/seed-<n>.json    its evaluation: a finished cell, which a repeated comparison keeps
<output>/comparison.json           everything, with intervals; comparison.md and report.html for people
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ray_recsys.config import Recipe
from ray_recsys.config.files import with_values
from ray_recsys.core.evaluation.comparison import Cell, Comparison, Cost, CurvePoint, Terms
from ray_recsys.core.evaluation.result import EvaluationResult
from ray_recsys.core.executor import Executor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.checkpoint import PROGRESS, read_progress
from ray_recsys.core.training.run import LAST
from ray_recsys.core.training.trainer import deciding_metric
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.core.workflows.request_cost import MeasureRequests
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.distributed.training import train
from ray_recsys.errors import InputError
from ray_recsys.progress import Reporter, silent
from ray_recsys.reports.compare_html import write_html
from ray_recsys.reports.comparison_tables import markdown
from ray_recsys.storage.files import exists, is_file, read_bytes, write_bytes
from ray_recsys.storage.location import Location, LocationLike

COMPARISON = "comparison.json"
MARKDOWN = "comparison.md"
REPORT = "report.html"


def compare(
    data: LocationLike,
    output: LocationLike,
    recipes: dict[str, Recipe],
    terms_of: Recipe,
    executor: Executor,
    *,
    num_seeds: int = 3,
    num_resamples: int = 2000,
    max_seconds: float | None = None,
    report: Reporter = silent,
) -> Comparison:
    """Trains every recipe with every seed on one prepared set, without a refit, and compares them on its test users.

    Args:
        data: The prepared set, with test interactions, in storage that all nodes reach.
        output: Directory of the comparison; cells that are finished there are kept.
        recipes: By name.
        terms_of: Protocol, workers and the first seed, the same for every recipe.
        executor: Fits, evaluates.
        num_seeds: Trainings of each recipe: with the seeds n, n + 1, and so on.
        num_resamples: Of the bootstrap.
        max_seconds: Budget of each training; see `train.max_time_s`.
        report: Progress.

    Raises:
        ArtifactError: The data cannot be used, or a run at `output` was trained otherwise.
        ClusterError: The cluster has too few CPUs or GPUs.
        EmptyDataError: No user has a held-out test item.
        InputError: There is nothing to compare.
        StageError: A training failed or diverged.
    """
    if not recipes:
        raise InputError("no recipes to compare", remedy="give --recipes A.toml B.toml")
    prepared, home = PreparedSet.open(data), Location.of(output)
    terms = Terms(
        input_fingerprint=prepared.manifest.input_fingerprint,
        split="test",
        evaluate=terms_of.evaluate,
        seed=terms_of.seed,
        num_resamples=num_resamples,
        max_seconds=max_seconds,
    )
    cells = _Cells(prepared, terms, executor, report)
    baselines, groups = cells.baselines(), []
    for name, recipe in recipes.items():
        seeds = range(terms.seed, terms.seed + num_seeds)
        groups.append([cells.cell(home / name, _alike(recipe, terms_of, seed, max_seconds)) for seed in seeds])
    comparison = Comparison.of(groups, baselines, str(prepared.location))
    _write(home, comparison, report)
    return comparison


def name_recipes(files: Sequence[LocationLike]) -> list[str]:
    """Returns the names of recipe files.

    Raises:
        InputError: Two are the same.
    """
    names = [Path(Location.of(file).name).stem for file in files]
    for file, name in zip(files, names, strict=True):
        if names.count(name) > 1:
            raise InputError(f"{file}: another recipe is named {name!r} too", remedy="rename one of the files")
    return names


def _alike(recipe: Recipe, terms_of: Recipe, seed: int, max_seconds: float | None) -> Recipe:
    """Returns a recipe with a seed, the comparison's workers and budget, and without a refit.

    A model that is trained in stages shares the budget out to them equally.
    """
    values: dict[str, object] = {"seed": seed, "train.refit": False}
    if max_seconds is not None:
        pretrain = getattr(recipe.model, "pretrain", None)
        branches = [branch for branch in ("gmf", "mlp") if getattr(pretrain, branch, None) is not None]
        stages = ["train", *(f"model.pretrain.{branch}.train" for branch in branches)]
        values |= {f"{stage}.max_time_s": max_seconds / len(stages) for stage in stages}
    return with_values(recipe, values).model_copy(update={"cluster": terms_of.cluster})


@dataclass(frozen=True, slots=True)
class _Cells:
    """Makes cells of one prepared set."""

    prepared: PreparedSet
    terms: Terms
    executor: Executor
    report: Reporter

    def cell(self, directory: Location, recipe: Recipe) -> Cell:
        """Returns the finished cell of a recipe, or completes its training and evaluation."""
        run, file = directory / f"seed-{recipe.seed}", directory / f"seed-{recipe.seed}.json"
        what, is_new, before = f"{directory.name}, seed {recipe.seed}", not exists(run), _read_cell(file)
        self.report(f"{what}: training")
        trained = train(self.prepared.location, run, recipe, self.executor, resume=not is_new, report=self.report)
        if before is not None and before.terms == self.terms and not is_new:
            self.report(f"{what}: finished already")
            return before
        self.report(f"{what}: evaluating")
        train_s_before = None if before is None else before.cost.train_s
        label, curve = _curve(run, recipe)
        cell = Cell(
            terms=self.terms,
            recipe=directory.name,
            seed=recipe.seed,
            model=trained.model,
            num_epochs=trained.num_epochs,
            curve_label=label,
            curve=curve,
            cost=self._cost(run, trained.wall_s if is_new else train_s_before),
            evaluation=self._evaluate(run, two_stage=recipe.seed == self.terms.seed),
        )
        write_bytes(file, (cell.model_dump_json() + "\n").encode())
        return cell

    def baselines(self) -> EvaluationResult:
        """Returns the evaluation of Popularity and Random."""
        return self._evaluate(None, two_stage=False)

    def _evaluate(self, run: Location | None, *, two_stage: bool) -> EvaluationResult:
        return evaluate(
            [] if run is None else [run],
            self.prepared,
            self.terms.evaluate,
            self.executor,
            seed=self.terms.seed,
            split=self.terms.split,
            two_stage=two_stage,
            baselines=run is None,
            num_resamples=self.terms.num_resamples,
            report=self.report,
        )

    def _cost(self, run: Location, train_s: float | None) -> Cost:
        measure = MeasureRequests(TrainedModel.open(run), self.prepared)
        (requests,) = self.executor.map(measure, 1, stage=f"measuring requests to {run}")
        size = sum(num_bytes for _, num_bytes, _ in measure.model.files)
        return Cost(
            train_s=train_s, model_mb=size / 1e6, request_ms=requests.request_ms, fold_in_ms=requests.fold_in_ms
        )


def _read_cell(file: Location) -> Cell | None:
    """Returns a finished cell; None: there is none, or it cannot be read and is made again."""
    try:
        return Cell.model_validate_json(read_bytes(file))
    except (OSError, ValidationError):
        return None


def _curve(run: Location, recipe: Recipe) -> tuple[str, tuple[CurvePoint, ...]]:
    """Returns the deciding metric, and the points of a model that was trained by epochs."""
    metric, points, seconds = deciding_metric(recipe.train), [], 0.0
    if is_file(run / LAST / PROGRESS):
        for record in read_progress(run / LAST).records:
            seconds += record.train_s + record.validate_s
            if metric.label in record.metrics:
                points.append(CurvePoint(epoch=record.epoch, seconds=seconds, value=record.metrics[metric.label]))
    return metric.label, tuple(points)


def _write(output: Location, comparison: Comparison, report: Reporter) -> None:
    for name, content in (
        (COMPARISON, comparison.model_dump_json(indent=1) + "\n"),
        (MARKDOWN, markdown(comparison)),
    ):
        write_bytes(output / name, content.encode())
    try:
        write_html(comparison, output / REPORT)
    except InputError as error:  # plots are not possible here
        report(f"no {REPORT}: {error}")
