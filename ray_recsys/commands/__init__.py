"""The commands of `ray-recsys`, one module per part of the pipeline; each wraps one workflow function."""
