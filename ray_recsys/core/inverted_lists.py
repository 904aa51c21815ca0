"""Inverted lists: vectors in the cells of a k-means, so that a query scores the items of its nearest cells alone.

HNSW finds as much in the time of a query, but takes minutes to build where this takes seconds, and Faiss cannot map its
graph into memory.

Shapes: S queries, I items, Q query width, N items per query.

Source: Jégou, Douze, Schmid: Product Quantization for Nearest Neighbor Search, PAMI 2011, section IV (inverted file).
"""

import faiss
import numpy as np

from ray_recsys.core.arrays import Float32s, Int64s

SEED = 1
TRAINING_PER_LIST = 64  # vectors of the k-means
MAX_SCANNED = 0.25  # part of the items: a query that scores more of them is no quicker than an exact one


def build_lists(vectors: Float32s, metric: int) -> "faiss.IndexIVFFlat":
    """Returns an inverted file of vectors, about 4 sqrt(I) lists."""
    width, num_lists = vectors.shape[1], max(1, int(4 * len(vectors) ** 0.5))
    lists = faiss.IndexIVFFlat(faiss.IndexFlat(width, metric), width, num_lists, metric)
    settings = lists.cp
    settings.niter, settings.seed = 8, SEED
    settings.min_points_per_centroid, settings.max_points_per_centroid = 1, TRAINING_PER_LIST
    settings.spherical = metric == faiss.METRIC_INNER_PRODUCT
    lists.train(vectors)
    lists.add(vectors)
    return lists


def tune(lists: "faiss.IndexIVFFlat", query: Float32s, exact: Int64s, min_recall: float) -> float | None:
    """Sets the smallest power of two of probes that reaches a recall; returns it.

    Args:
        lists: The inverted file.
        query: float32[S, Q].
        exact: The best items of each query, int64[S, N].
        min_recall: Part of them that must be found, on average.

    Returns:
        The recall reached; None: it would take so many probes that an exact search is as quick.
    """
    num_probes = 1
    while num_probes <= MAX_SCANNED * lists.nlist:
        lists.nprobe = num_probes
        found = lists.search(query, exact.shape[1])[1]
        recall = recall_of(found, exact)
        if recall >= min_recall:
            return recall
        num_probes *= 2
    return None


def recall_of(found: Int64s, exact: Int64s) -> float:
    """Returns the part of the exact items that were found, rows matched with rows."""
    is_found = [np.isin(want, got).mean() for want, got in zip(exact, found, strict=True)]
    return float(np.mean(is_found))
