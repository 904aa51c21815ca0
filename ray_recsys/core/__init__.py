"""Algorithms in numpy, pyarrow, torch and faiss, which run without Ray."""
