"""Trains a model on a prepared set with Ray Train; the driver's side.

The run's directory always suffices to resume: a lost worker is replaced from the latest checkpoint, and after a lost
driver `resume` continues. What a worker does is in `train_worker`.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.ensemble import Ensemble
from ray_recsys.core.models.fusion import Branch, branch_recipes
from ray_recsys.core.models.registry import MODELS, load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training import checkpoint as checkpoints
from ray_recsys.core.training.checkpoint import read_progress, verify_checkpoint
from ray_recsys.core.training.curves import write_curves, write_plot
from ray_recsys.core.training.lease import leased
from ray_recsys.core.training.run import (
    CURVES,
    CURVES_PLOT,
    LAST,
    MODEL,
    RAY_STORAGE,
    Run,
    RunManifest,
    TrainResult,
    can_resume,
    check_refit,
    finish_run,
    is_unfinished,
    read_start,
    run_directory,
    start_of,
    start_run,
)
from ray_recsys.core.training.trainer import Progress
from ray_recsys.core.training.warm_start import WarmStart
from ray_recsys.core.workflows.fit import fit
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.distributed.resources import require_workers
from ray_recsys.distributed.train_stage import run_stage
from ray_recsys.distributed.train_worker import WorkerArgs
from ray_recsys.progress import Reporter, Warned, silent
from ray_recsys.storage.files import delete_tree
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.trackers.tracker import tracked


def train(
    data: LocationLike,
    output: LocationLike,
    recipe: Recipe,
    executor: Executor,
    *,
    resume: bool = False,
    warm_start: LocationLike | None = None,
    report: Reporter = silent,
) -> TrainResult:
    """Trains the recipe's model of any kind and writes a finished run.

    Args:
        data: A prepared set, in storage that all workers reach.
        output: The run to write, in storage that all workers reach.
        recipe: Model, feed, train, cluster and seed.
        executor: For models that are fitted without epochs.
        resume: Resume the unfinished run at `output`; a finished one is left as it is.
        warm_start: Bundle whose weights a new run begins with; a resumed run keeps its own.
        report: Gets an event per epoch.

    Raises:
        ArtifactError: `output` exists, or cannot be resumed with this data and recipe, or `data` or the bundle cannot
            be read or do not fit the recipe.
        InputError: `warm_start` for a model that is fitted without epochs.
        ClusterError: The cluster has too few CPUs or GPUs.
        RecipeError: A refit would train on a given test.
        StageError: Training failed or diverged.
    """
    prepared, location = PreparedSet.open(data), Location.of(output)
    start = None if warm_start is None else WarmStart.open(warm_start, recipe)
    if MODELS[recipe.model.name].fit is not None:
        return _fit_tracked(prepared, location, recipe, executor, resume=resume, report=report)
    return train_by_gradient(prepared, location, recipe, resume=resume, warm_start=start, report=report)


def refit(
    finished: LocationLike,
    data: LocationLike,
    output: LocationLike,
    cluster: ClusterRecipe,
    executor: Executor,
    *,
    resume: bool = False,
    report: Reporter = silent,
) -> TrainResult:
    """Retrains a finished run's model on all interactions, held-out ones included, into a new run.

    Args:
        finished: The run whose recipe and number of epochs are used.
        data: The prepared set that it was trained on.
        output: The run to write.
        cluster: Workers of the new run.
        executor: For models that are fitted without epochs.
        resume: Resume the unfinished run at `output`.
        report: Gets an event per epoch.

    Raises:
        ArtifactError: `output` exists or cannot be resumed, or run or data cannot be used or do not belong together.
        ClusterError: The cluster has too few CPUs or GPUs.
        StageError: Training failed or diverged.
    """
    prepared, run = PreparedSet.open(data), Run.open(finished)
    TrainedModel.open(finished).check_fits(prepared)
    trained = run.manifest.recipe
    recipe = trained.model_copy(update={"train": trained.train.model_copy(update={"refit": True}), "cluster": cluster})
    if MODELS[recipe.model.name].fit is not None:
        return _fit_tracked(prepared, Location.of(output), recipe, executor, resume=resume, report=report)
    chosen = _Chosen(read_progress(run.location / LAST), run.manifest.branch_epochs)
    start = run.manifest.warm_start
    return train_by_gradient(
        prepared, Location.of(output), recipe, resume=resume, warm_start=start, report=report, chosen=chosen
    )


def _fit_tracked(
    prepared: PreparedSet, output: Location, recipe: Recipe, executor: Executor, *, resume: bool, report: Reporter
) -> TrainResult:
    is_new = not resume or is_unfinished(output)
    result = fit(prepared, output, recipe, executor, resume=resume, report=report)
    if is_new:
        with tracked(result.run, recipe, report) as tracking:
            tracking.finish(result.metrics)
    return result


def train_by_gradient(
    prepared: PreparedSet,
    output: Location,
    recipe: Recipe,
    *,
    resume: bool,
    report: Reporter,
    warm_start: WarmStart | None = None,
    chosen: "_Chosen | None" = None,
) -> TrainResult:
    """Trains until early stopping or the last epoch; see `train`.

    Args:
        prepared: The prepared set.
        output: The run to write.
        recipe: Model, feed, train, cluster and seed.
        resume: Resume the unfinished run at `output`.
        report: Gets an event per epoch.
        warm_start: Initial weights of a new run.
        chosen: Result of a finished training; only the refit remains.
    """
    start_s = time.perf_counter()
    check_refit(prepared, recipe)
    start = start_of(prepared, recipe, warm_start)
    if resume and not can_resume(output, start):
        report(f"the run at {output} is finished already")
        return TrainResult.of(output, Run.open(output).manifest, start_s)
    resources = require_workers(recipe.cluster, report=report)  # before anything is written
    if resume:
        report(f"resuming the run at {output}")
    else:
        start_run(output, start)
    with leased(output):
        if not is_unfinished(output):  # by another process, while this one waited for nothing
            return TrainResult.of(output, Run.open(output).manifest, start_s)
        started = read_start(output)
        if started.warm_start is not None and started.warm_start.refit and chosen is None:
            report(Warned(f"{started.warm_start.version} was refit, held-out items included: validation is optimistic"))
        args = WorkerArgs(
            data=prepared.location, run=output, recipe=recipe, resources=resources, warm_start=started.warm_start
        )
        with tracked(output, recipe, report) as tracking:
            manifest = _train_and_export(args, chosen, tracking)
            tracking.finish(manifest.metrics)
    return TrainResult.of(output, manifest, start_s)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Numbers of epochs chosen by a training with validation; a refit repeats them."""

    progress: Progress
    branch_epochs: Mapping[str, int]
    """Best epoch of each pre-trained branch."""


def _train_and_export(args: WorkerArgs, chosen: _Chosen | None, report: Reporter) -> RunManifest:
    """Trains, and refits if the recipe says so; makes a finished run of the result."""
    num_seeds, is_refit = args.recipe.train.num_seeds, args.recipe.train.refit
    of_seeds: list[Location] = []
    if chosen is None:
        checkpoint, chosen = _train_stages(args, None, report)
        of_seeds += [] if is_refit else [checkpoint]
    if is_refit:
        epochs = chosen.progress.best_epoch
        report(f"refitting on everything for {epochs} epochs, held-out interactions included")
    for member in range(len(of_seeds), num_seeds):
        if num_seeds > 1:
            report(f"seed {member + 1} of {num_seeds}")
        of_seeds.append(_train_stages(args.of_member(member), chosen if is_refit else None, report)[0])
    return _export(of_seeds, chosen, args.run, is_refit=is_refit)


def _train_stages(args: WorkerArgs, chosen: _Chosen | None, report: Reporter) -> tuple[Location, _Chosen]:
    """Pre-trains the branches of the recipe, then trains the whole model.

    A warm start loads a whole model, so no branch is pre-trained.

    Args:
        args: Of the whole model.
        chosen: Numbers of epochs for a refit on everything; None: validation chooses them.
        report: Progress.

    Returns:
        The last checkpoint of the whole model, and what was chosen.
    """
    recipes = branch_recipes(args.recipe) if args.warm_start is None else {}
    branches: dict[Branch, Location] = {}
    branch_epochs: dict[str, int] = {}
    for branch, recipe in recipes.items():
        refit_epochs = None if chosen is None else chosen.branch_epochs[branch]
        report(f"pre-training the {branch.upper()} branch")
        stage = args.model_copy(update={"recipe": recipe, "branch": branch, "refit_epochs": refit_epochs})
        checkpoint = run_stage(stage, report)
        branches[branch], branch_epochs[branch] = checkpoint, read_progress(checkpoint).best_epoch
    if branches:
        report(f"training NeuMF from its pre-trained {' and '.join(branch.upper() for branch in branches)}")
    refit_epochs = None if chosen is None else chosen.progress.best_epoch
    checkpoint = run_stage(args.model_copy(update={"branches": branches, "refit_epochs": refit_epochs}), report)
    return checkpoint, _Chosen(read_progress(checkpoint), branch_epochs)


def _export(of_seeds: Sequence[Location], chosen: _Chosen, output: Location, *, is_refit: bool) -> RunManifest:
    """Makes a run of the last checkpoint of each seed; `last/` is the first one's.

    Ray's storage goes last, so that a kill in between can be resumed.
    """
    copies, progress = [verify_checkpoint(checkpoint).path for checkpoint in of_seeds], chosen.progress
    with run_directory(output) as directory:
        for name in (MODEL, LAST):
            shutil.rmtree(directory / name, ignore_errors=True)
        shutil.copytree(copies[0], directory / LAST, ignore=shutil.ignore_patterns(checkpoints.BEST, ".*"))
        if len(copies) == 1:
            shutil.copytree(copies[0] / checkpoints.BEST, directory / MODEL)
        else:
            (directory / MODEL).mkdir()
            Ensemble([load_model(copy / checkpoints.BEST) for copy in copies]).save(directory / MODEL)
        write_curves(directory / CURVES, progress.records)
        write_plot(directory / CURVES_PLOT, progress.records)
        manifest = finish_run(
            directory,
            num_epochs=progress.num_epochs,
            best_epoch=progress.best_epoch,
            metrics=progress.best_metrics,
            refit=is_refit,
            branch_epochs=chosen.branch_epochs,
        )
    delete_tree(output / RAY_STORAGE)
    return manifest
