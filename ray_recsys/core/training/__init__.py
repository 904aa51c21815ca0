"""Training: the learner, its epochs and objective, and what a run leaves behind."""
