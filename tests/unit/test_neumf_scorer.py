"""NeuMFScorer gives the model's logits, whatever the block and whoever else is in the call."""

import numpy as np
import pytest
import torch

from ray_recsys.core.models import neumf_scorer
from ray_recsys.core.models.neumf_scorer import NeuMFScorer
from tests.unit.test_neumf import ITEMS, USERS, make


@pytest.mark.parametrize("block_values", [6 * 4, 512 * 1024])
def test_catalogue_and_pairs_equal_the_model(monkeypatch: pytest.MonkeyPatch, block_values: int) -> None:
    monkeypatch.setattr(neumf_scorer, "_BLOCK_VALUES", block_values)
    model = make(layer_norm=True, dropout=0.3)
    scorer = NeuMFScorer(model)
    user_idx, catalogue = np.arange(USERS), np.tile(np.arange(ITEMS), (USERS, 1))
    expected = model(torch.from_numpy(user_idx), torch.from_numpy(catalogue)).detach().numpy()

    scores = scorer.score_catalogue(user_idx)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(scorer.score_pairs(user_idx, catalogue), expected, rtol=1e-5, atol=1e-6)


def test_a_users_scores_do_not_depend_on_the_other_users() -> None:
    scorer = NeuMFScorer(make())
    item_idx = np.random.default_rng(0).integers(0, ITEMS, (USERS, 9))
    together = scorer.score_pairs(np.arange(USERS), item_idx)
    alone = np.concatenate([scorer.score_pairs(np.array([u]), item_idx[u : u + 1]) for u in range(USERS)])
    assert np.array_equal(together, alone)
    assert scorer.score_pairs(np.zeros(0, np.int64), item_idx[:0]).shape == (0, 9)
