"""The items with the highest scores, of several rows of scores at once and without sorting them.

Shapes: B rows, I items, K kept of each row.
"""

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s


def top_items(scores: Float32s, num_kept: int) -> list[Int32s]:
    """Returns the items with the highest scores of each row, ascending; of those tied for the last place, the first.

    Args:
        scores: float32[B, I]; -inf: not eligible.
        num_kept: K, at least 1; fewer are returned where fewer are eligible.
    """
    together = _flat_indices(scores, num_kept)
    if together is None:
        return [_of_row(row, num_kept) for row in scores]
    return list((together % scores.shape[1]).astype(np.int32))


def best_first(scores: Float32s, num_kept: int) -> list[Int32s]:
    """Returns what `top_items` does, best first, ties by item."""
    if len(scores) == 1:
        order = np.argsort(-scores[0], kind="stable")[:num_kept].astype(np.int32)
        return [order if scores[0, order[-1:]].min(initial=0) > -np.inf else order[scores[0, order] > -np.inf]]
    together = _flat_indices(scores, num_kept)
    if together is None:
        kept = zip(scores, top_items(scores, num_kept), strict=True)
        return [own[np.argsort(-row[own], kind="stable")] for row, own in kept]
    rows = np.arange(len(scores))[:, None]
    by_score = np.argsort(-scores.reshape(-1)[together], axis=1, kind="stable")
    return list((together[rows, by_score] % scores.shape[1]).astype(np.int32))


def _flat_indices(scores: Float32s, num_kept: int) -> Int64s | None:
    """Returns the flat indices of the best of each row, int64[B, K]; None: some row has ties, or fewer."""
    num_rows, num_items = scores.shape
    if num_kept >= num_items:
        return None
    edges = np.partition(scores, num_items - num_kept, axis=1)[:, num_items - num_kept, None]
    indices = np.flatnonzero(scores >= edges)  # of each row at least K, so there are B x K only if no row has more
    return indices.reshape(num_rows, num_kept) if len(indices) == num_rows * num_kept else None


def _of_row(scores: Float32s, num_kept: int) -> Int32s:
    eligible = np.flatnonzero(scores > -np.inf).astype(np.int32)
    if len(eligible) <= num_kept:
        return eligible
    values = scores[eligible]
    edge = np.partition(values, len(values) - num_kept)[len(values) - num_kept]
    is_kept = values > edge
    is_kept[np.flatnonzero(values == edge)[: num_kept - int(is_kept.sum())]] = True
    kept: Int32s = eligible[is_kept]
    return kept
