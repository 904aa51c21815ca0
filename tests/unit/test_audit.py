"""Each fault is planted into a clean prepared set, re-signed where a reader would otherwise refuse it, and found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.inspecting.audit import AuditedItems, PartitionAudit, audit, audit_partition
from ray_recsys.core.inspecting.audit_findings import (
    MAX_EXAMPLES,
    Finding,
    audit_items,
    audit_manifest,
    find,
    merge_findings,
)
from ray_recsys.core.inspecting.audit_users import (
    AuditedUsers,
    audit_negatives,
    home_partitions,
)
from ray_recsys.core.prepared import ITEMS, PreparedSet, write_prepared_manifest
from ray_recsys.errors import ArtifactError
from ray_recsys.progress import Event
from tests.executors import EXECUTOR
from tests.factories import change_a_byte, make_prepared_set, replace_user_ids, rewrite_partitions

PARTITION = 1
Change = Callable[[Histories], Histories]


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return make_prepared_set(tmp_path / "prepared")


def rewrite(prepared: PreparedSet, change: Change, **manifest_changes: object) -> PreparedSet:
    """Returns the set with the partition's histories changed."""
    return rewrite_partitions(prepared, change, PARTITION, **manifest_changes)


def checked(prepared: PreparedSet) -> PartitionAudit:
    items = AuditedItems.of(prepared, prepared.read_items())
    return audit_partition(prepared, PARTITION, items, draws_negatives=False)


def item_rank(prepared: PreparedSet) -> Int64s:
    return AuditedItems.of(prepared, prepared.read_items()).rank


def only_finding(prepared: PreparedSet) -> Finding:
    findings = checked(prepared).findings
    assert len(findings) == 1, findings
    return findings[0]


def put(part: Interactions, index: int, **values: int) -> Interactions:
    """Returns the part with some columns of one interaction changed."""
    columns = {name: np.array(getattr(part, name)) for name in values}
    for name, value in values.items():
        columns[name][index] = value
    return replace(part, **columns)


def test_a_clean_set_has_no_finding(prepared: PreparedSet) -> None:
    items = AuditedItems.of(prepared, prepared.read_items())
    recount = np.zeros(prepared.manifest.num_items, np.int64)
    for partition in range(len(prepared.manifest.partitions)):
        audited = audit_partition(prepared, partition, items, draws_negatives=True)
        assert audited.findings == ()
        assert audited.num_negatives == prepared.manifest.partitions[partition].num_training * 4
        recount[audited.item_idx] += audited.counts
    assert (recount == prepared.item_counts()).all()
    assert audit_items(prepared.read_items(), recount) == []
    assert audit_manifest(prepared.manifest) == []


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_training_pair_that_is_held_out(prepared: PreparedSet, name: str) -> None:
    def leak(histories: Histories) -> Histories:
        leaked = int(histories.training.item_idx[histories.training.offsets[4]])
        part = put(getattr(histories, name), 4, item_idx=leaked)
        return replace(histories, test=part) if name == "test" else replace(histories, validation=part)

    finding = only_finding(rewrite(prepared, leak))
    assert finding.fault == f"training pairs in the {name}"
    assert finding.count == 1
    user_idx = prepared.manifest.partitions[PARTITION].first_user_idx + 4
    assert finding.examples[0].startswith(f"user_idx {user_idx} ('user-{user_idx:05d}'), item_idx ")


def test_a_validation_pair_in_the_test(prepared: PreparedSet) -> None:
    def leak(histories: Histories) -> Histories:
        return replace(histories, test=replace(histories.test, item_idx=histories.validation.item_idx))

    finding = only_finding(rewrite(prepared, leak))
    assert finding.fault == "validation pairs in the test"
    assert finding.count == prepared.manifest.partitions[PARTITION].num_users
    assert len(finding.examples) == MAX_EXAMPLES


def test_a_repeated_pair(prepared: PreparedSet) -> None:
    def repeat(histories: Histories) -> Histories:
        item = int(histories.training.item_idx[0])
        return replace(histories, training=put(histories.training, 1, item_idx=item))

    assert only_finding(rewrite(prepared, repeat)).fault == "repeated pairs in the training"


def test_a_history_out_of_order(prepared: PreparedSet) -> None:
    def swap(histories: Histories) -> Histories:
        return replace(histories, training=put(histories.training, 0, timestamp_s=1_000))

    finding = only_finding(rewrite(prepared, swap))
    assert finding.fault == "training histories out of order"
    assert "second 1000 comes before 1" in finding.examples[0]


def test_a_first_interaction_earlier_than_the_last_of_the_user_before_is_in_order(prepared: PreparedSet) -> None:
    assert checked(prepared).findings == ()


def test_an_item_held_out_too_early(prepared: PreparedSet) -> None:
    def early(histories: Histories) -> Histories:
        return replace(histories, test=put(histories.test, 3, timestamp_s=999_999))

    finding = only_finding(rewrite(prepared, early))
    assert finding.fault == "test items earlier than a preceding interaction of their user"
    assert finding.examples[0].endswith("second 999999")


def in_id_order(prepared: PreparedSet, part: Interactions, timestamp_s: Int64s) -> Interactions:
    """Returns a part with each user's items in order of id, as they are when all are of one moment."""
    order = np.lexsort((item_rank(prepared)[part.item_idx], part.rows()))
    return replace(part, item_idx=part.item_idx[order], timestamp_s=timestamp_s)


def test_ties_inside_a_part_that_are_not_in_order_of_id(prepared: PreparedSet) -> None:
    split = {"method": "random_per_user", "time_unit_us": 1_000_000}

    def tie(histories: Histories) -> Histories:
        moment = np.full(len(histories.training.item_idx), 5)
        return replace(histories, training=in_id_order(prepared, histories.training, moment))

    def swap(histories: Histories) -> Histories:
        first, second = histories.training.item_idx[:2].tolist()
        return replace(histories, training=put(put(histories.training, 0, item_idx=second), 1, item_idx=first))

    tied = rewrite(prepared, tie, split=split)
    assert checked(tied).findings == ()
    finding = only_finding(rewrite(tied, swap))
    assert (finding.fault, finding.count) == ("simultaneous items that are not in order of item id", 1)
    assert "): misplaced item_idx " in finding.examples[0]
    finer = {**split, "time_unit_us": 1_000}
    assert checked(rewrite(tied, swap, split=finer)).findings == (), "milliseconds may have decided"


def test_ties_between_training_and_a_held_out_item_that_are_not_in_order_of_id(prepared: PreparedSet) -> None:
    split = {"method": "leave_one_out", "time_unit_us": 1_000_000}
    ranks = item_rank(prepared)
    histories = prepared.read_partition(PARTITION)
    is_behind = ranks[histories.validation.item_idx] > ranks[histories.test.item_idx]
    assert is_behind.any()

    def same_moment(histories: Histories) -> Histories:
        return replace(histories, test=replace(histories.test, timestamp_s=histories.validation.timestamp_s))

    finding = only_finding(rewrite(prepared, same_moment, split=split))
    assert (finding.fault, finding.count) == (
        "simultaneous items that are not in order of item id",
        int(np.count_nonzero(is_behind)),
    )


def test_times_on_the_wrong_side_of_the_cut(prepared: PreparedSet) -> None:
    split = {"method": "global_time", "validation_from_s": 1_000_000.5, "test_from_s": 2_000_000.0}
    clean = rewrite(prepared, lambda histories: histories, split=split)
    assert checked(clean).findings == ()

    def shift(histories: Histories) -> Histories:
        late = put(histories.training, len(histories.training.item_idx) - 1, timestamp_s=1_000_001)
        early = put(histories.validation, 0, timestamp_s=999_999)
        return replace(
            histories,
            training=late,
            validation=put(early, 1, timestamp_s=2_000_000),
            test=put(histories.test, 2, timestamp_s=1_999_999),
        )

    faults = {finding.fault: finding.count for finding in checked(rewrite(clean, shift, split=split)).findings}
    assert faults == {
        "training times at or after the cut at 1000000.5 s": 1,
        "validation times before the cut at 1000000.5 s": 1,
        "validation times at or after the cut at 2000000.0 s": 1,
        "test times before the cut at 2000000.0 s": 1,
    }


def test_an_item_index_that_the_vocabulary_does_not_have(prepared: PreparedSet) -> None:
    def unknown(histories: Histories) -> Histories:
        return replace(histories, test=put(histories.test, 0, item_idx=prepared.manifest.num_items))

    assert only_finding(rewrite(prepared, unknown)).fault == "item indices of the test outside the vocabulary"


def test_user_indices_with_a_gap(prepared: PreparedSet) -> None:
    path = prepared.path / prepared.manifest.partitions[PARTITION].file
    table = pq.read_table(path)
    user_idx = table["user_idx"].to_numpy().copy()
    user_idx[-1] += 1
    pq.write_table(table.set_column(0, "user_idx", pa.array(user_idx)), path)
    write_prepared_manifest(prepared.path, prepared.manifest, {})
    assert only_finding(PreparedSet.open(prepared.path)).fault == "user indices that are not consecutive"


def test_user_ids_that_are_null_or_occur_again(prepared: PreparedSet) -> None:
    first, _, _, *rest = prepared.read_user_ids(PARTITION).to_pylist()
    finding = only_finding(replace_user_ids(prepared, PARTITION, [first, first, None, *rest]))
    assert (finding.fault, finding.count) == ("user ids that are null or repeated", 2)


def test_a_user_without_training_interactions(prepared: PreparedSet) -> None:
    def empty_first(histories: Histories) -> Histories:
        training = histories.training
        kept = slice(training.offsets[1], None)
        offsets = np.concatenate([[0], training.offsets[1:] - training.offsets[1]])
        assert training.timestamp_s is not None
        emptied = Interactions(offsets, training.item_idx[kept], training.timestamp_s[kept])
        return replace(histories, training=emptied)

    assert only_finding(rewrite(prepared, empty_first)).fault == "users without training interactions"


def test_a_changed_byte_and_a_partition_with_other_counts(prepared: PreparedSet) -> None:
    path = prepared.path / prepared.manifest.partitions[PARTITION].file
    change_a_byte(path)
    finding = only_finding(prepared)
    assert finding.fault == "damaged files"
    assert str(path) in finding.examples[0]
    path.unlink()
    assert "is missing" in only_finding(prepared).examples[0]


def test_where_an_id_belongs_does_not_depend_on_its_type() -> None:
    ids = pa.array(range(1_000))
    homes = home_partitions(ids, 7)
    assert set(homes) == set(range(7))
    assert (home_partitions(ids.cast(pa.string()), 7) == homes).all()


def test_counts_that_do_not_add_up(prepared: PreparedSet) -> None:
    first, second, *rest = prepared.manifest.partitions
    wrong = second.model_copy(update={"num_test": second.num_test + 1, "first_user_idx": second.first_user_idx + 1})
    changes = {"rows_in": prepared.manifest.rows_in + 5, "partitions": (first, wrong, *rest)}
    adding, gap = audit_manifest(prepared.manifest.model_copy(update=changes))
    assert (adding.fault, adding.count) == ("counts of the manifest that do not add up", 2)
    assert "rows_in = " in adding.examples[0]
    assert "num_test = 60" in adding.examples[1]
    assert gap.examples == (f"{wrong.file}: first_user_idx 21 instead of 20",)


def items(ids: list[str | None], counts: list[int]) -> pa.Table:
    return pa.table({"item_idx": np.arange(len(ids)), "item_id": pa.array(ids, pa.string()), "count": counts})


@pytest.mark.parametrize(
    ("table", "recount", "fault"),
    [
        (items(["a", "b"], [1, 3]), [1, 3], "items that are not in order of descending count, ties by id"),
        (items(["b", "a"], [3, 3]), [3, 3], "items that are not in order of descending count, ties by id"),
        (items(["a", "b", "a"], [3, 2, 1]), [3, 2, 1], "item ids that are null or repeated"),
        (items(["a", None], [3, 2]), [3, 2], "item ids that are null or repeated"),
        (items(["a", "b"], [3, 2]), [3, 0], "items without training interactions"),
        (items(["a", "b"], [3, 2]), [3, 1], "items whose count differs from the training histories"),
    ],
)
def test_faults_of_the_item_table(table: pa.Table, recount: list[int], fault: str) -> None:
    (finding,) = audit_items(table, np.array(recount))
    assert (finding.fault, finding.count) == (fault, 1)


def test_item_indices_that_are_not_the_row() -> None:
    table = items(["a", "b"], [2, 1]).set_column(0, "item_idx", pa.array([0, 2]))
    (finding,) = audit_items(table, np.array([2, 1]))
    assert finding.examples == ("row 1: item_idx 2",)


def test_negatives_that_hit_a_positive() -> None:
    training = Interactions(np.array([0, 2, 3]), np.array([1, 4, 2], np.int32))
    nothing = Interactions(np.zeros(3, np.int64), np.zeros(0, np.int32))
    users = AuditedUsers(Histories(7, training, nothing, nothing), pa.array(["x", "y"]), num_items=5)
    rows: Int64s = np.array([0, 0, 1])
    assert audit_negatives(users, rows, np.array([[0, 2], [3, 0], [1, 4]])) == []
    (finding,) = audit_negatives(users, rows, np.array([[0, 4], [3, 0], [2, 2]]))
    assert finding.count == 3
    assert finding.examples[:2] == ("user_idx 7 ('x'), item_idx 4", "user_idx 8 ('y'), item_idx 2")


def test_findings_of_partitions_are_added_up() -> None:
    many = find("a", np.arange(8), str)
    merged = merge_findings([*many, *find("b", np.array([True, False, True]), str), *many])
    assert [(finding.fault, finding.count) for finding in merged] == [("a", 16), ("b", 2)]
    assert merged[0].examples == ("0", "1", "2", "3", "4", "5", "6", "7", "0", "1")
    assert merged[1].examples == ("0", "2")


class TestWholeSets:
    def test_a_clean_set_passes(self, tmp_path: Path) -> None:
        prepared = make_prepared_set(tmp_path / "prepared", num_partitions=10)
        lines: list[Event] = []
        found = audit(prepared.path, EXECUTOR, report=lines.append)
        assert found.passed
        assert found.findings == ()
        assert found.model_dump()["passed"] is True
        assert found.num_users == 60
        sampled = prepared.manifest.partitions[::2]
        assert found.num_negatives == 4 * sum(partition.num_training for partition in sampled)
        assert lines[-1] == "passed"

    def test_faults_are_counted_over_partitions_and_items(self, prepared: PreparedSet) -> None:
        def leak(histories: Histories) -> Histories:
            first = histories.training.item_idx[histories.training.offsets[:-1]]
            return replace(histories, validation=replace(histories.validation, item_idx=first))

        rewrite_partitions(prepared, leak, num_training=1)
        found = audit(prepared.path, EXECUTOR)
        assert not found.passed
        leaked, adding = found.findings
        assert (leaked.fault, leaked.count) == ("training pairs in the validation", 60)
        assert leaked.examples[0].startswith("user_idx 0 ('user-00000'), item_idx ")
        assert adding.fault == "counts of the manifest that do not add up"

    @pytest.mark.parametrize("partition", [1, 2])
    def test_a_user_in_two_partitions_wherever_the_copy_is(self, prepared: PreparedSet, partition: int) -> None:
        assert "user-00002" in prepared.read_user_ids(0).to_pylist()
        ids = prepared.read_user_ids(partition).to_pylist()
        replace_user_ids(prepared, partition, ["user-00002", *ids[1:]])
        (finding,) = audit(prepared.path, EXECUTOR).findings
        assert finding.fault == "user ids in more than one partition"
        assert finding.examples == ("user_id 'user-00002' in 2 partitions",)

    def test_damage_is_a_finding_and_not_an_error(self, prepared: PreparedSet) -> None:
        path = prepared.path / ITEMS
        change_a_byte(path)
        (finding,) = audit(prepared.path, EXECUTOR).findings
        assert finding.fault == "damaged files"
        path.write_bytes(path.read_bytes()[:-1])
        (finding,) = audit(prepared.path, EXECUTOR).findings
        assert "truncated or changed" in finding.examples[0]

    def test_a_damaged_partition_hides_no_fault_of_another(self, prepared: PreparedSet) -> None:
        ids = prepared.read_user_ids(1).to_pylist()
        repeated = replace_user_ids(prepared, 1, [ids[1], *ids[1:]])
        change_a_byte(repeated.path / repeated.manifest.partitions[2].file)
        faults = {finding.fault: finding.count for finding in audit(prepared.path, EXECUTOR).findings}
        assert faults["damaged files"] == 1
        assert faults["user ids that are null or repeated"] == 1

    def test_a_folder_that_is_not_a_prepared_set_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=MANIFEST):
            audit(tmp_path, EXECUTOR)
