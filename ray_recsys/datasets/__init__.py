"""Loaders for public sets, and the synthetic generator."""
