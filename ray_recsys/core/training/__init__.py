"""Training: the learner, its epochs and objective, and the files of a run."""
