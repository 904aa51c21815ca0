"""Workflows of the commands: fit, evaluate, publish, recommend, score."""
