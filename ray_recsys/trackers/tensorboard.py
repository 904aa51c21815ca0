"""TensorBoard's event files, in a run's own directory."""

import uuid
from collections.abc import Mapping

from tensorboardX import SummaryWriter

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core.training.run import TENSORBOARD
from ray_recsys.progress import EpochFinished
from ray_recsys.storage.location import Location


class TensorBoardTracker:
    """Writes scalars by epoch, and the recipe as text; nothing before the first epoch.

    Args:
        run: The run's directory.
        recipe: Of the run.
    """

    def __init__(self, run: Location, recipe: Recipe) -> None:
        self._directory, self._recipe = run / TENSORBOARD, recipe
        self._writer: SummaryWriter | None = None
        self._last: tuple[str, int] | None = None

    def log_epoch(self, event: EpochFinished) -> None:
        """Writes an epoch; what an earlier attempt wrote of it and of later ones is then not shown."""
        if self._last is None or self._last[0] != event.stage or event.epoch <= self._last[1]:
            self._open(event)
        self._last = (event.stage, event.epoch)
        assert self._writer is not None
        scalars = {"loss": event.loss, "samples_per_s": event.samples_per_s}
        scalars |= {name.replace("@", "_at_"): value for name, value in event.metrics.items()}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, event.epoch)
        self._writer.flush()

    def _open(self, event: EpochFinished) -> None:
        """Begins a new file; each stage has a directory, which TensorBoard shows as a run."""
        if self._writer is not None:
            self._writer.close()
        suffix = f".{uuid.uuid4().hex[:8]}"  # the name's time has seconds only
        directory = str(self._directory / event.stage)
        self._writer = SummaryWriter(directory, purge_step=event.epoch, filename_suffix=suffix)
        self._writer.add_text("recipe", f"```toml\n{dump_recipe(self._recipe)}\n```", 0)

    def close(self, metrics: Mapping[str, float] | None) -> None:  # noqa: ARG002 - the epochs have them
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
