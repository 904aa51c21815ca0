"""Whether a run may begin, or go on, at a directory.

This module does not know how a run is continued.
"""

from pathlib import Path

from ray_recsys.config import Recipe
from ray_recsys.core.training.run import Run, RunStart, is_unfinished, read_start, start_run
from ray_recsys.errors import ArtifactError


def begin_run(output: Path, start: RunStart) -> None:
    """Makes the directory of a new run.

    Raises:
        ArtifactError: It exists.
    """
    if output.exists():
        remedy = "give another directory" + (", or --resume to go on with it" if is_unfinished(output) else "")
        raise ArtifactError(f"{output} exists already; {remedy}")
    start_run(output, start)


def can_resume(output: Path, start: RunStart) -> bool:
    """Whether the run at `output` is unfinished.

    Raises:
        ArtifactError: There is no run, or it began with other data or another recipe; names what differs.
    """
    is_open = is_unfinished(output)
    begun = read_start(output) if is_open else Run.open(output).manifest
    if begun.input_fingerprint != start.input_fingerprint:
        raise ArtifactError(
            f"{output} began with other data (fingerprint {begun.input_fingerprint}, now {start.input_fingerprint}); "
            "resume with the same --data, or train into another directory"
        )
    if different := _differences(begun.recipe, start.recipe):
        raise ArtifactError(
            f"{output} began with another recipe ({'; '.join(different)}); resume with {output / 'recipe.toml'}, "
            "or train into another directory"
        )
    return is_open


def _differences(begun: Recipe, now: Recipe) -> list[str]:
    different = [] if begun.seed == now.seed else [f"seed = {begun.seed}, now {now.seed}"]
    for section in ("model", "feed", "train"):
        before, after = (getattr(recipe, section).model_dump() for recipe in (begun, now))
        keys = [key for key in before if before[key] != after[key]]
        different += [f"{section}.{key} = {before[key]}, now {after[key]}" for key in keys]
    return different
