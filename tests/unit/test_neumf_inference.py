"""The trained NeuMF gives the network's logits, whatever the block and whoever else is in the call; fold-in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.core.models import neumf_inference
from ray_recsys.core.models.contract import DenseFactors
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.registry import load_model
from tests.bundles import random_model
from tests.unit.test_neumf import ITEMS, USERS, logits_of, make

CATALOGUE = np.tile(np.arange(ITEMS), (USERS, 1))


def logits(network: NeuMF) -> np.ndarray:
    with torch.no_grad():
        recent = None if network.latest_items is None else torch.from_numpy(network.latest_items)
        return logits_of(network.eval(), torch.arange(USERS), torch.from_numpy(CATALOGUE), recent).numpy()


@pytest.mark.parametrize("block_values", [6 * 4, 512 * 1024])
def test_catalogue_lists_and_pairs_equal_the_network(monkeypatch: pytest.MonkeyPatch, block_values: int) -> None:
    monkeypatch.setattr(neumf_inference, "_BLOCK_VALUES", block_values)
    network = make(layer_norm=True, dropout=0.3)
    model, expected = network.export(), logits(network)
    users = model.users(np.arange(USERS))
    assert model.scores(users).dtype == np.float32
    np.testing.assert_allclose(model.scores(users), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.scores(users, CATALOGUE), expected, rtol=1e-5, atol=1e-6)
    for column in range(ITEMS):  # short lists take another path
        np.testing.assert_allclose(
            model.scores(users, CATALOGUE[:, [column]])[:, 0], expected[:, column], rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("mlp_layers", [[6], [6, 5, 3]])
@pytest.mark.parametrize("rows", [1, 4, 1024])
def test_many_users_with_the_catalogue_equal_the_network(
    monkeypatch: pytest.MonkeyPatch, mlp_layers: list[int], rows: int
) -> None:
    monkeypatch.setattr(neumf_inference, "_CATALOGUE_ROWS", rows)
    network = make(mlp_layers=mlp_layers, dropout=0.3, init_std=1.0)
    generator = torch.Generator().manual_seed(1)
    for name, values in network.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(values, generator=generator)
    model, expected = network.export(), logits(network)
    np.testing.assert_allclose(model.scores(model.users(np.arange(USERS))), expected, rtol=1e-5, atol=1e-5)


def test_one_user_alone_is_scored_as_among_others() -> None:
    model = make().export()
    item_idx = np.random.default_rng(0).integers(0, ITEMS, (USERS, 9))
    users = model.users(np.arange(USERS))
    alone = [model.scores(users.take(np.array([u])), item_idx[u : u + 1]) for u in range(USERS)]
    np.testing.assert_allclose(model.scores(users, item_idx), np.concatenate(alone), rtol=1e-5, atol=1e-6)
    nobody = model.users(np.zeros(0, np.int64))
    assert model.scores(nobody, item_idx[:0]).shape == (0, 9)


def test_recall_space_orders_by_the_gmf_logit() -> None:
    network = make()
    model = network.export()
    users, space = model.users(np.arange(USERS)), model.recall_space()
    assert space is not None
    assert isinstance(users, DenseFactors)
    products = users.values[:, : space.query_width] @ space.item_vectors.T
    with torch.no_grad():
        constant = (network.user_bias + network.global_bias).unsqueeze(1)
        expected = network.branches(torch.arange(USERS), torch.from_numpy(CATALOGUE))[0] - constant
    np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_is_bit_for_bit_the_same(tmp_path: Path) -> None:
    model = make(layer_norm=True).export()
    model.save(tmp_path)
    loaded, everybody = load_model(tmp_path), np.arange(USERS)
    assert (loaded.num_users, loaded.num_items) == (USERS, ITEMS)
    assert np.array_equal(loaded.scores(loaded.users(everybody)), model.scores(model.users(everybody)))


def test_a_folded_in_user_prefers_their_history_more_than_the_mean_user_does() -> None:
    network = random_model(60, 40)
    with torch.no_grad():  # user 0 becomes the mean user
        for table in (network.user_gmf, network.user_mlp, network.user_bias):
            table[0] = table.mean(0)
    model = network.export()
    history = np.array([30, 35, 39], np.int32)
    others = np.setdiff1d(np.arange(40), history)

    def margin(users: object) -> float:
        assert isinstance(users, DenseFactors)
        scores = model.scores(users)[0]
        return float(scores[history].mean() - scores[others].mean())

    assert margin(model.fold_in(history)) > margin(model.users(np.array([0])))


def test_fold_in_is_a_function_of_the_set_of_the_latest_items() -> None:
    model = random_model(60, 40).export()
    history = np.array([5, 9, 1], np.int32)
    first, second = model.fold_in(history), model.fold_in(history[::-1].copy())
    assert isinstance(first, DenseFactors)
    assert isinstance(second, DenseFactors)
    assert np.array_equal(first.values, second.values)


def with_recent_items() -> NeuMF:
    network = make(recent_items=3, gmf_output=False)
    rng = np.random.default_rng(4)
    network.latest_items = rng.integers(0, ITEMS, (USERS, 3)).astype(np.int32)
    network.latest_items[2] = (5, -1, -1)
    network.latest_items[3] = -1
    return network


def test_recent_items_of_trained_users_count_and_are_saved(tmp_path: Path) -> None:
    network = with_recent_items()
    model, everybody = network.export(), np.arange(USERS)
    np.testing.assert_allclose(model.scores(model.users(everybody)), logits(network), rtol=1e-5, atol=1e-6)
    model.save(tmp_path)
    loaded = load_model(tmp_path)
    assert np.array_equal(loaded.scores(loaded.users(everybody)), model.scores(model.users(everybody)))


def test_a_grown_history_keeps_the_trained_embedding_and_nobody_gets_the_mean() -> None:
    network = with_recent_items()
    model = network.export()
    assert network.latest_items is not None
    history = network.latest_items[0][::-1].copy()  # oldest first
    same = model.fold_in(history, user_idx=0)
    assert same is not None
    np.testing.assert_allclose(model.scores(same), model.scores(model.users(np.array([0]))), rtol=1e-5, atol=1e-6)
    nobody = model.fold_in(history)
    with torch.no_grad():
        for table in (network.user_gmf, network.user_mlp, network.user_bias):
            table[0] = table.mean(0)
    mean = network.export()
    assert nobody is not None
    np.testing.assert_allclose(mean.scores(nobody), mean.scores(mean.users(np.array([0]))), rtol=1e-5, atol=1e-6)


def test_fold_in_of_a_trained_user_starts_from_their_own_embedding() -> None:
    model = random_model(60, 40).export()
    trained = model.users(np.array([7]))
    history = np.array([5, 9, 1], np.int32)
    near, far = model.fold_in(history, user_idx=7), model.fold_in(history)
    assert isinstance(near, DenseFactors)
    assert isinstance(far, DenseFactors)
    assert isinstance(trained, DenseFactors)
    assert np.linalg.norm(near.values - trained.values) < np.linalg.norm(far.values - trained.values)
