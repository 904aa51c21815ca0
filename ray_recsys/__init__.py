"""A recommender stack on Ray: from a raw interaction log to recommendations over HTTP."""

__version__ = "0.1.0"
