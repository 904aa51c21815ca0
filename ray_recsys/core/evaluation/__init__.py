"""Ranking metrics of models over users, and the protocols that they are measured under."""
