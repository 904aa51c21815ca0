"""Diversity of a list, by maximal marginal relevance: an item loses part of its score for similarity to those above it.

Source: Carbonell, Goldstein: The Use of MMR, Diversity-Based Reranking, SIGIR 1998, section 2; scores scaled to 0..1.
Shapes: C candidates, N neighbours.
"""

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.models.neighbours import Neighbours


def diversify(items: Int32s, scores: Float32s, neighbours: Neighbours, k: int, diversity: float) -> Int64s:
    """Returns the positions of the k items that maximal marginal relevance picks, in its order, int64[<= k].

    Args:
        items: Candidates [C], best first.
        scores: Their scores [C].
        neighbours: Similarities; items that are not neighbours have similarity 0.
        k: Number of items.
        diversity: 1 - lambda of the paper; 0 keeps the order of the scores.
    """
    if not len(items):
        return np.zeros(0, np.int64)
    spread = float(scores.max() - scores.min()) or 1.0
    relevance = (1 - diversity) * (scores - scores.min()) / spread
    similarity = _similarities(items, neighbours)
    highest = np.zeros(len(items), np.float32)  # similarity to the most similar item picked
    is_open = np.ones(len(items), bool)
    picked = np.empty(min(k, len(items)), np.int64)
    for number in range(len(picked)):
        best = int(np.argmax(np.where(is_open, relevance - diversity * highest, -np.inf)))
        picked[number], is_open[best] = best, False
        np.maximum(highest, similarity[best], out=highest)
    return picked


def _similarities(items: Int32s, neighbours: Neighbours) -> Float32s:
    """Returns the similarity of each pair of candidates, float32[C, C]; either may have the other as a neighbour."""
    order = np.argsort(items)
    near = neighbours.item_idx[items]
    found = np.minimum(np.searchsorted(items[order], near), len(items) - 1)
    columns = order[found]
    is_candidate = items[columns] == near
    rows = np.broadcast_to(np.arange(len(items))[:, None], near.shape)
    matrix = np.zeros((len(items), len(items)), np.float32)
    matrix[rows[is_candidate], columns[is_candidate]] = neighbours.scores[items][is_candidate]
    return np.maximum(matrix, matrix.T)
