"""Explains why training failed: the worker's own error, a full disk, or missing cluster resources."""

import ray.train
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from ray_recsys.config import ClusterRecipe
from ray_recsys.distributed.ray_errors import root_cause
from ray_recsys.distributed.resources import describe_missing
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.storage.location import Location

_DISK_IS_FULL = ("No space left", "os error 28", "file write failed", "unexpected pos")  # torch.save tells no more


def explain_failure(error: ray.train.TrainingFailedError, cluster: ClusterRecipe, run: Location) -> RecsysError:
    """Returns the worker's own error, without Ray's layers around it."""
    resume = f"resume with `ray-recsys train --resume --output {run}`"
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause = root_cause(failure)
        if isinstance(cause, RecsysError):
            return cause
        text = str(cause).strip().splitlines()
        message = f"training failed on worker {rank}: {type(cause).__name__}: {text[-1] if text else ''}"
        is_full = any(sign in str(cause) for sign in _DISK_IS_FULL)
        return StageError(message, remedy=f"free space there, then {resume}" if is_full else resume)
    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        return StageError(
            f"training stopped: {describe_missing(cluster)}; waited {cluster.start_timeout_s:g} s",
            remedy=f"add a node, or lower cluster.num_workers or set cluster.min_workers, then {resume}",
        )
    return StageError(f"training failed: {error}", remedy=resume)
