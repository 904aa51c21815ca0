"""Metrics of scorers over users, and the baselines beside them."""
