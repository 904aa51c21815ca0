"""TensorBoard's event files, in a run's own directory."""

import uuid
from collections.abc import Mapping
from pathlib import Path

from tensorboardX import SummaryWriter

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core.training.run import TENSORBOARD
from ray_recsys.progress import EpochFinished


class TensorBoardTracker:
    """Writes scalars by epoch, and the recipe as text; nothing before the first epoch.

    Args:
        run: The run's directory.
        recipe: Of the run.
    """

    def __init__(self, run: Path, recipe: Recipe) -> None:
        self._directory, self._recipe = run / TENSORBOARD, recipe
        self._writer: SummaryWriter | None = None
        self._last: tuple[bool, int] = (False, 0)

    def log_epoch(self, event: EpochFinished) -> None:
        """Writes an epoch; what an earlier attempt wrote of it and of later ones is then not shown."""
        part = "refit" if event.is_refit else "train"
        here = (event.is_refit, event.epoch)
        if self._writer is None or here <= self._last:
            self._reopen(event)
        self._last = here
        assert self._writer is not None
        scalars = {f"{part}/loss": event.loss, f"{part}/samples_per_s": event.samples_per_s}
        scalars |= {f"validation/{name.replace('@', '_at_')}": value for name, value in event.metrics.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, event.epoch)
        self._writer.flush()

    def _reopen(self, event: EpochFinished) -> None:
        if self._writer is not None:
            self._writer.close()
        # Purging by step would also hide the training's epochs behind those of its refit.
        purge_step = None if event.is_refit else event.epoch
        suffix = f".{uuid.uuid4().hex[:8]}"  # the name's time has seconds only
        self._writer = SummaryWriter(str(self._directory), purge_step=purge_step, filename_suffix=suffix)
        self._writer.add_text("recipe", f"```toml\n{dump_recipe(self._recipe)}\n```", 0)

    def close(self, metrics: Mapping[str, float] | None) -> None:  # noqa: ARG002 - the epochs have them
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
