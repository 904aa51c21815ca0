"""Experiment trackers: a run's recipe and metrics in TensorBoard and MLflow."""
