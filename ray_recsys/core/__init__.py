"""Algorithms in numpy, pyarrow, torch and faiss; knows nothing of Ray."""
