"""Ray's settings that are environment variables; those that are set already win. See Ray's documentation for more."""

import os

# Read by Ray when a raylet, or a Train, Data or Serve process starts, and when `ray.serve` is imported.
_DEFAULTS = {
    "RAY_num_workers_soft_limit": "16",  # else each shuffle on a small node starts Python processes anew
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else every report blocks for 2 s
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 8-13 x the default proxy's rate
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between replicas
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


def set_defaults() -> None:
    """Sets what is not set yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
