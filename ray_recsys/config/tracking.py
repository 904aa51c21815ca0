"""The recipe section on experiment trackers."""

from pydantic import Field

from ray_recsys.config.section import Section


class TrackRecipe(Section):
    """Experiment trackers; one that fails warns and never ends a training."""

    tensorboard: bool = True
    """Event files in the run: `tensorboard --logdir RUN/tensorboard`."""
    mlflow: bool = False
    """An MLflow run with recipe, metrics per epoch and, once published, the bundle's version (the extra `mlflow`)."""
    mlflow_uri: str | None = None
    """MLflow's tracking URI; None: MLFLOW_TRACKING_URI, or else the folder `mlruns` next to the run."""
    experiment: str = Field(default="ray_recsys", min_length=1)
    """MLflow's experiment."""
