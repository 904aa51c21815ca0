"""What the commands do with models: fit, evaluate, publish, recommend, score."""
