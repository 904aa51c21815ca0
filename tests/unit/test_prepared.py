"""A prepared set is read as it was written, and one of another schema version is refused by both versions."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.cli import main
from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.prepared import ITEMS, SCHEMA_VERSION, PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.errors import IntegrityError, SchemaVersionError
from tests.executors import EXECUTOR
from tests.factories import change_a_byte, make_prepared_set


def make_old(path: Path) -> Path:
    """Gives a prepared set the schema version before this one."""
    prepared = make_prepared_set(path)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf8"))
    (path / MANIFEST).write_text(json.dumps({**manifest, "schema_version": SCHEMA_VERSION - 1}), encoding="utf8")
    return prepared.path


def test_a_set_of_the_version_before_is_refused_by_both_versions(tmp_path: Path) -> None:
    assert SCHEMA_VERSION == 2
    old = make_old(tmp_path / "old")
    message = (
        r"old/manifest\.json has schema version 1, but this version of ray_recsys reads 2; "
        "create the prepared set again with this version"
    )
    with pytest.raises(SchemaVersionError, match=message):
        PreparedSet.open(old)


def test_the_command_says_so_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--data", str(make_old(tmp_path / "old"))]) == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "has schema version 1" in shown
    assert "reads 2" in shown
    assert "create the prepared set again" in shown


def test_an_old_set_is_replaced_on_demand_alone(tmp_path: Path) -> None:
    old = make_old(tmp_path / "old")
    rows = ["user_id,item_id,timestamp", *(f"{u},{i},{u + i}" for u in range(4) for i in range(4))]
    log = tmp_path / "log.csv"
    log.write_text("\n".join(rows), encoding="utf8")
    recipe = make_prepared_set(tmp_path / "new").manifest.recipe
    with pytest.raises(SchemaVersionError, match="schema version 1"):
        prepare([str(log)], old, recipe, EXECUTOR)
    assert prepare([str(log)], old, recipe, EXECUTOR, overwrite=True).num_users == 4
    assert PreparedSet.open(old).manifest.rows_in == 16


def test_a_set_is_read_as_it_was_written(tmp_path: Path) -> None:
    parts = [
        histories_of(0, np.array([0, 2, 3]), np.array([4, 0, 4], np.int32)),
        histories_of(2, np.array([0, 1]), np.array([1], np.int32)),
    ]
    prepared = write_set(tmp_path / "set", iter(parts), 5, user_ids=lambda idx: pa.array([f"u{i}" for i in idx]))
    prepared.verify()
    assert [info.first_user_idx for info in prepared.manifest.partitions] == [0, 2]
    assert (prepared.manifest.num_users, prepared.manifest.num_training, prepared.manifest.rows_in) == (3, 4, 4)
    assert prepared.item_counts().tolist() == [1, 1, 0, 0, 2]
    assert prepared.read_items()["item_id"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert prepared.read_user_ids(1).to_pylist() == ["u2"]
    assert prepared.read_columns(0, ["item_idx", "rating"]).to_pydict() == {"item_idx": [[4, 0], [4]]}
    histories = prepared.read_partition(0)
    assert histories.training.offsets.tolist() == [0, 2, 3]
    assert histories.training.item_idx.tolist() == [4, 0, 4]
    assert histories.test.lengths.tolist() == [0, 0]


@pytest.mark.parametrize("name", [ITEMS, "users/part-00001.parquet"])
def test_a_changed_byte_is_found_by_verify_and_by_readers_and_not_by_open(tmp_path: Path, name: str) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    change_a_byte(prepared.path / name)
    opened = PreparedSet.open(prepared.path)
    with pytest.raises(IntegrityError, match=rf"{name} was changed"):
        opened.verify()
    with pytest.raises(IntegrityError, match=rf"{name} was changed"):
        opened.verify(name)
    opened.verify("users/part-00000.parquet")
    with pytest.raises(IntegrityError, match=rf"{name} was changed"):
        opened.read_items() if name == ITEMS else opened.read_columns(1, ["item_idx"])
    assert opened.read_user_ids(0).to_pylist() == prepared.read_user_ids(0).to_pylist()


def test_with_held_out_everything_is_training(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", has_ratings=True)
    everything = prepared.with_held_out()
    manifest = everything.manifest
    assert (manifest.num_training, manifest.num_validation, manifest.num_test) == (prepared.manifest.rows_kept, 0, 0)
    counts = np.zeros(manifest.num_items, np.int64)
    for partition, info in enumerate(manifest.partitions):
        histories = everything.read_partition(partition)
        assert len(histories.training.item_idx) == info.num_training
        assert not histories.validation.lengths.any()
        assert not histories.test.lengths.any()
        parts = prepared.read_partition(partition)
        for row in range(info.num_users):
            items = [
                part.item_idx[slice(*part.offsets[row : row + 2])]
                for part in (parts.training, parts.validation, parts.test)
            ]
            found = histories.training.item_idx[slice(*histories.training.offsets[row : row + 2])]
            assert found.tolist() == np.concatenate(items).tolist()
        table = everything.read_columns(partition, ["user_idx", "item_idx", "test_item_idx", "rating"])
        assert table["item_idx"].combine_chunks().flatten().to_pylist() == histories.training.item_idx.tolist()
        assert table["test_item_idx"].combine_chunks().flatten().to_pylist() == []
        counts += np.bincount(histories.training.item_idx, minlength=len(counts))
    assert everything.item_counts().tolist() == counts.tolist()
