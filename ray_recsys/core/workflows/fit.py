"""Fits a model without epochs and writes a run, as training does."""

import shutil
import time

from ray_recsys.config import Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import (
    MODEL,
    Run,
    TrainResult,
    can_resume,
    check_refit,
    finish_run,
    run_directory,
    start_of,
    start_run,
)
from ray_recsys.core.training.validation import Validation
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import Location, LocationLike


def fit(
    prepared: PreparedSet,
    output: LocationLike,
    recipe: Recipe,
    executor: Executor,
    *,
    resume: bool = False,
    report: Reporter = silent,
) -> TrainResult:
    """Fits the recipe's model on the training interactions and writes a finished run.

    Args:
        prepared: The prepared set.
        output: The run to write.
        recipe: Model and seed.
        executor: Runs the blocks of a large catalogue.
        resume: Finish the unfinished run at `output`; a finished one is left as it is.
        report: Progress.

    Raises:
        ArtifactError: `output` exists, or cannot be resumed with this data and recipe.
        RecipeError: A refit would train on a given test.
    """
    start_s = time.perf_counter()
    check_refit(prepared, recipe)
    start = start_of(prepared, recipe)
    if resume and not can_resume(output, start):
        report(f"the run at {output} is finished already")
        return TrainResult.of(output, Run.open(output).manifest, start_s)
    if not resume:
        start_run(output, start)
    spec = MODELS[recipe.model.name]
    assert spec.fit is not None
    report(f"fitting {spec.label}")
    model = spec.fit(prepared, recipe, executor)
    sums = Validation.read(prepared, recipe).measure(model)
    metrics = sums.means() if sums.num_users else {}
    if recipe.train.refit:
        report("fitting again on everything, held-out interactions included")
        model = spec.fit(prepared.with_held_out(), recipe, executor)
    with run_directory(Location.of(output)) as directory:
        shutil.rmtree(directory / MODEL, ignore_errors=True)
        (directory / MODEL).mkdir()
        model.save(directory / MODEL)
        manifest = finish_run(directory, num_epochs=0, best_epoch=0, metrics=metrics, refit=recipe.train.refit)
    report(f"fitted: {', '.join(f'{name} {value:.4f}' for name, value in metrics.items()) or 'no validation'}")
    return TrainResult.of(output, manifest, start_s)
