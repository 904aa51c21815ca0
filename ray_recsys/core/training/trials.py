"""Trials of a search over recipes: their table and ranking."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ray_recsys.core.training.trainer import DecidingMetric
from ray_recsys.storage.location import Location


class Trial(BaseModel):
    """One trial; its metrics are those of its best epoch."""

    model_config = ConfigDict(frozen=True)

    values: dict[str, Any]
    """By recipe key."""
    num_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    error: str | None = None
    curve: tuple[float, ...] = ()
    """The best value so far of the metric that decides, after each epoch."""

    def __str__(self) -> str:
        values = ", ".join(f"{key} {_shown(value)}" for key, value in self.values.items())
        if self.error is not None:
            return f"{values}: failed, {self.error}"
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items() if name in _SHOWN)
        return f"{values}: {metrics} (epoch {self.best_epoch} of {self.num_epochs}, {self.seconds:.0f} s)"


_SHOWN = ("NDCG@10", "RMSE")


class TuneResult(BaseModel):
    """The result of a search."""

    model_config = ConfigDict(frozen=True)

    output: Location
    best_recipe: Location
    """Ready to train."""
    num_trials: int
    best: Trial
    trials: tuple[Trial, ...]
    """Best first."""
    wall_s: float


def rank_of(trial: Trial, metric: DecidingMetric) -> float:
    """Returns a number that is lower for a better trial."""
    if trial.error is not None or metric.label not in trial.metrics:
        return math.inf
    value = trial.metrics[metric.label]
    return value if metric.is_error else -value


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Writes one line per trial."""
    keys = list(trials[0].values)
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "num_epochs", "best_epoch", *names, "seconds", "error"])
        for trial in trials:
            values = [trial.values[key] for key in keys]
            metrics = [trial.metrics.get(name, "") for name in names]
            writer.writerow([*values, trial.num_epochs, trial.best_epoch, *metrics, trial.seconds, trial.error or ""])
