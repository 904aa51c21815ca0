"""The device's random numbers and batches: the same bits as those of the host."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.train_gpu import main
from ray_recsys.config.files import load_recipe
from ray_recsys.core import counter_random as host
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.sampling import device_random as device
from ray_recsys.core.sampling.device_stream import DeviceStream
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.loop import EpochFeed, train_epochs
from ray_recsys.core.training.trainer import Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import RecipeError
from tests.factories import make_prepared_set

CPU = torch.device("cpu")
uint64s = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)


def tensor(values: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.array(values, np.uint64).view(np.int64))


@given(uint64s, st.integers(0, 2**64 - 1), st.integers(1, 2**31 - 1), st.integers(1, 2**62))
def test_random_numbers_are_those_of_the_host(values: list[int], key: int, bound: int, large: int) -> None:
    array = np.array(values, np.uint64)
    counters = np.arange(len(values))
    bits = host.random_bits(array, counters)
    found = device.random_bits(tensor(values), torch.from_numpy(counters))
    assert np.array_equal(found.numpy().view(np.uint64), bits)
    assert np.array_equal(device.scale_to(found, bound).numpy(), host.scale_to(bits.copy(), bound))
    bounds = np.full(len(values), large, np.uint64)
    expected = host.scale_to_each(bits, bounds)
    assert np.array_equal(device.scale_to_each(found, tensor([large] * len(values))).numpy(), expected)
    keys = host.derive_keys(key, counters)
    assert np.array_equal(device.derive_keys(key, torch.from_numpy(counters)).numpy().view(np.uint64), keys)
    by_tensor = device.derive_keys(tensor(keys.tolist()), torch.from_numpy(counters))
    assert np.array_equal(by_tensor.numpy().view(np.uint64), host.derive_keys(keys, counters))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_shuffles_are_those_of_the_host(size: int, key: int) -> None:
    order, positions = host.Permutation(size, key), np.arange(size)
    assert np.array_equal(device.permute(order, torch.from_numpy(positions)).numpy(), order(positions))


SETTINGS = {
    "implicit": [],
    "few items": ["feed.num_negatives=9"],  # most draws are repeated, and the last is made among the allowed items
    "recent items": ["model.recent_items=3", "feed.recency_half_life=4.0"],
    "explicit": ["train.objective=explicit", "input.rating_column=rating"],
    "held out": ["feed.exclude_held_out=true"],
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("world_size", [1, 3])
def test_batches_are_those_of_the_host(tmp_path: Path, settings: list[str], world_size: int) -> None:
    recipe = load_recipe(None, ["train.batch_size=50", *settings])
    num_items = 14 if "feed.num_negatives=9" in settings else 200
    prepared = make_prepared_set(tmp_path / "data", num_items=num_items, has_ratings=True)
    for rank in range(world_size):
        stream = DeviceStream(prepared, recipe, CPU, rank=rank, world_size=world_size)
        expected = local_feed(prepared, recipe, rank=rank, world_size=world_size)
        for epoch, first_step in ((1, 0), (2, 3)):
            pairs = zip(stream.batches(epoch, first_step), expected.batches(epoch, first_step), strict=True)
            for mine, theirs in pairs:
                assert mine.global_batch_size == theirs.global_batch_size
                assert mine.num_pairs == theirs.num_pairs
                for name in ("user_idx", "item_idx", "weight", "rating", "recent"):
                    found, wanted = getattr(mine, name), getattr(theirs, name)
                    assert (found is None) == (wanted is None)
                    if found is not None:
                        np.testing.assert_array_equal(found.numpy(), wanted, err_msg=name)
        expected.close()


def test_a_worker_without_positives_gets_empty_batches(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["model.recent_items=3"])
    prepared = make_prepared_set(tmp_path / "data", num_users=3, num_partitions=1)
    size = prepared.manifest.num_training + 1
    stream = DeviceStream(prepared, recipe, CPU, rank=0, world_size=size)
    (batch,) = stream.batches(1)
    (expected,) = local_feed(prepared, recipe, rank=0, world_size=size).batches(1)
    assert expected.item_idx.shape == (0, 5)
    assert tuple(batch.item_idx.shape) == (0, 5)
    assert batch.recent is not None
    assert tuple(batch.recent.shape) == (0, 3)


def test_training_from_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    recipe = load_recipe(
        None, ["train.epochs=2", "train.batch_size=64", "model.embedding_dim=4", "model.mlp_layers=[8]"]
    )
    prepared = make_prepared_set(tmp_path / "data")
    feeds: list[EpochFeed] = [local_feed(prepared, recipe), DeviceStream(prepared, recipe, CPU)]
    trained = []
    for feed in feeds:
        build = MODELS["neumf"].build
        assert build is not None
        trainer = Trainer(build(prepared, recipe), recipe.train)
        train_epochs(trainer, feed, Validation.read(prepared, recipe), recipe.seed, lambda *_: None)
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(values, trained[1][name]) for name, values in trained[0].items())


def test_a_set_larger_than_a_window_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["feed.window_interactions=10"])
    with pytest.raises(RecipeError, match=r"device's memory.*window_interactions allows 10"):
        DeviceStream(make_prepared_set(tmp_path / "data"), recipe, CPU)


@pytest.mark.parametrize("setting", ["feed.negatives=popularity", "train.optimizer=sparse_adam"])
def test_what_the_device_cannot_do_is_refused_in_the_recipe(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"cluster\.placement = 'device'"):
        load_recipe(None, ["cluster.placement=device", setting])


def test_the_benchmark_for_gpus_runs_on_a_cpu() -> None:
    options = ["--device", "cpu", "--users", "50", "--items", "90", "--interactions", "1000", "--batch", "250"]
    found = CliRunner().invoke(main, [*options, "--precision", "float32", "--rounds", "1", "--json"])
    assert found.exit_code == 0, found.output
    assert all(rate > 0 for rate in json.loads(found.output)["medians"].values())
