"""An MLflow run for each training: recipe, metrics by epoch, and the version of the bundle made from it.

MLflow (the extra `mlflow`) is imported when a tracker is made. Its usage reports to its makers are switched off.
"""

import importlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ray_recsys.config import Recipe
from ray_recsys.core.training.run import MLFLOW, read_start
from ray_recsys.errors import InputError
from ray_recsys.progress import EpochFinished
from ray_recsys.storage.files import is_file, read_text, write_bytes
from ray_recsys.storage.location import Location, LocationLike

_SECTIONS = ("model", "feed", "train")
_FOLDER = "mlruns"


class MLflowTracker:
    """Records into one MLflow run, whose id the training run keeps, so that `--resume` and `publish` find it.

    Args:
        uri: Of MLflow's store.
        run_id: MLflow's.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self._client, self._entities = _client(uri), importlib.import_module("mlflow.entities")
        self._run_id = run_id

    @classmethod
    def start(cls, run: Location, recipe: Recipe) -> Self:
        """Makes an MLflow run, or continues the one of a training that is resumed.

        Raises:
            InputError: MLflow is not installed.
        """
        if cls.has_record(run):
            tracker = cls.resume(run)
            tracker._client.update_run(tracker._run_id, status="RUNNING")
            return tracker
        uri = recipe.track.mlflow_uri or os.environ.get("MLFLOW_TRACKING_URI") or _local_store(run)
        client, name = _client(uri), recipe.track.experiment
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found is not None else client.create_experiment(name)
        tags = {"run": str(run), "data_fingerprint": read_start(run).input_fingerprint}
        run_id = str(client.create_run(experiment, run_name=run.name, tags=tags).info.run_id)
        write_bytes(run / MLFLOW, (json.dumps({"uri": uri, "run_id": run_id}) + "\n").encode())
        tracker = cls(uri, run_id)
        tracker._log_recipe(recipe)
        return tracker

    @staticmethod
    def has_record(run: LocationLike) -> bool:
        """Whether a training run has an MLflow run."""
        return is_file(Location.of(run) / MLFLOW)

    @classmethod
    def resume(cls, run: Location) -> Self:
        """Returns the tracker of a training run that has an MLflow run."""
        record = json.loads(read_text(run / MLFLOW))
        return cls(record["uri"], record["run_id"])

    def log_epoch(self, event: EpochFinished) -> None:
        """Records an epoch."""
        part = "" if event.stage == "train" else f"{event.stage}_"
        values = {"loss": event.loss, "samples_per_s": event.samples_per_s, **event.metrics}
        self._log({f"{part}{name}": value for name, value in values.items()}, event.epoch)

    def close(self, metrics: Mapping[str, float] | None) -> None:
        """Records the best epoch's metrics, and how the training ended."""
        self._log({f"best_{name}": value for name, value in (metrics or {}).items()}, 0)
        self._client.set_terminated(self._run_id, status="FAILED" if metrics is None else "FINISHED")

    def tag_bundle(self, version: str) -> None:
        """Records the version of the bundle that was built from the run."""
        self._client.set_tag(self._run_id, "bundle_version", version)

    def _log_recipe(self, recipe: Recipe) -> None:
        values = recipe.model_dump(mode="json")
        params = {"seed": recipe.seed, "num_workers": recipe.cluster.num_workers}
        params |= {f"{section}.{key}": value for section in _SECTIONS for key, value in values[section].items()}
        self._client.log_batch(
            self._run_id, params=[self._entities.Param(name, str(value)) for name, value in params.items()]
        )

    def _log(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(name.replace("@", "_at_"), value, now_ms, step) for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)


def _local_store(run: Location) -> str:
    if not run.is_local:
        raise InputError(f"MLflow cannot keep files next to {run}", remedy="set track.mlflow_uri to a server")
    return Path(run.parent / _FOLDER).as_uri()


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if uri.startswith("file:"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # which MLflow keeps, but no longer extends
    try:
        mlflow = importlib.import_module("mlflow")
    except ImportError as error:
        raise InputError(
            f"track.mlflow needs MLflow ({error})", remedy="run: pip install 'ray-recsys[mlflow]'"
        ) from error
    return mlflow.MlflowClient(tracking_uri=uri)
