"""The audit of a whole set: clean sets pass, leaks and damage are counted over all partitions."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.prepared import ITEMS, write_partition, write_prepared_manifest
from ray_recsys.distributed.audit import audit
from ray_recsys.errors import ArtifactError
from ray_recsys.progress import Event
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_clean_set_passes(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared", num_partitions=10)
    lines: list[Event] = []
    found = audit(prepared.path, report=lines.append)
    assert found.passed
    assert found.findings == ()
    assert found.model_dump()["passed"] is True
    assert found.num_users == 60
    sampled = prepared.manifest.partitions[::2]
    assert found.num_negatives == 4 * sum(partition.num_training for partition in sampled)
    assert lines[-1] == "passed"


def test_faults_are_counted_over_partitions_and_items(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared")
    partitions = []
    for p in range(3):
        histories = prepared.read_partition(p)
        first = histories.training.item_idx[histories.training.offsets[:-1]]
        leaking = replace(histories, validation=replace(histories.validation, item_idx=first))
        info, _ = write_partition(prepared.path, p, leaking, prepared.read_user_ids(p).combine_chunks())
        partitions.append(info)
    manifest = prepared.manifest.model_copy(update={"partitions": tuple(partitions), "num_training": 1})
    write_prepared_manifest(prepared.path, manifest, {})
    found = audit(prepared.path)
    assert not found.passed
    leak, adding = found.findings
    assert (leak.fault, leak.count) == ("pairs of the training in the validation", 60)
    assert leak.examples[0].startswith("user_idx 0 ('user-00000'), item_idx ")
    assert adding.fault == "counts of the manifest that do not add up"


def test_a_user_in_two_partitions_is_found(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared")
    path = prepared.partition_path(1)
    table = pq.read_table(path)
    ids = ["user-00002", *table["user_id"].to_pylist()[1:]]
    pq.write_table(table.set_column(1, "user_id", pa.array(ids)), path)
    write_prepared_manifest(prepared.path, prepared.manifest, {})
    (finding,) = audit(prepared.path).findings
    assert finding.examples == ("user_id 'user-00002' in 2 partitions",)


def test_damage_is_a_finding_and_not_an_error(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared")
    path = prepared.path / ITEMS
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)
    (finding,) = audit(prepared.path).findings
    assert finding.fault == "files that are damaged"
    path.write_bytes(content[:-1])
    (finding,) = audit(prepared.path).findings
    assert "truncated or changed" in finding.examples[0]


def test_a_folder_that_is_no_prepared_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=MANIFEST):
        audit(tmp_path)
