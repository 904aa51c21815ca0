"""A check of files runs once a node while they stay as they are, and each stage alone passes its smoke queries."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.core.recommending import checked_once
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.checked_once import check_once
from ray_recsys.core.recommending.guard import check_answers, read_smoke
from ray_recsys.core.recommending.recommender import Candidates, Recaller, Reranker
from ray_recsys.errors import BundleRefusedError
from tests.bundles import make_bundle
from tests.factories import change_a_byte, make_prepared_set


@pytest.fixture(autouse=True)
def own_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "node").mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "node"))


def test_a_check_that_passed_is_repeated_when_a_file_changes_alone(tmp_path: Path) -> None:
    files, checks = tmp_path / "files", []
    files.mkdir()
    (files / "one").write_bytes(b"12345")
    for _ in range(3):
        check_once("a", files, lambda: checks.append(1))
    check_once("b", files, lambda: checks.append(2))
    assert checks == [1, 2]
    moved = files.rename(tmp_path / "moved")
    check_once("a", moved, lambda: checks.append(3))
    assert checks == [1, 2]
    change_a_byte(moved / "one")
    check_once("a", moved, lambda: checks.append(4))
    assert checks == [1, 2, 4]


def test_a_check_that_failed_is_repeated(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "one").write_bytes(b"1")

    def fail() -> None:
        raise BundleRefusedError("no")

    for _ in range(2):
        with pytest.raises(BundleRefusedError):
            check_once("a", files, fail)


def test_processes_that_ask_together_wait_for_one_check(tmp_path: Path) -> None:
    files, running, most = tmp_path / "files", [], []
    files.mkdir()
    (files / "one").write_bytes(b"1")
    lock = threading.Lock()

    def check() -> None:
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.02)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: check_once("a", files, check), range(8)))
    assert most == [1]


def test_stamps_in_a_directory_that_others_can_write_are_not_believed(tmp_path: Path) -> None:
    files, checks = tmp_path / "files", []
    files.mkdir()
    (files / "one").write_bytes(b"1")
    check_once("a", files, lambda: checks.append(1))
    checked_once._home().chmod(0o777)
    check_once("a", files, lambda: checks.append(2))
    assert checks == [1, 2]


def test_a_bundle_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_bundle(tmp_path / "bundle", make_prepared_set(tmp_path / "prepared"))
    hashed: list[str] = []
    monkeypatch.setattr("ray_recsys.core.artifact.verify_file", lambda _, name, __: hashed.append(name))
    for _ in range(3):
        Bundle.open(tmp_path / "bundle")
    assert len(hashed) == len(set(hashed)) > 8


def test_each_stage_alone_passes_the_smoke_queries_and_notices_its_own_fault(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", make_prepared_set(tmp_path / "prepared"))
    bundle = Bundle.open(tmp_path / "bundle")
    smoke, recaller, reranker = read_smoke(bundle), Recaller(bundle), Reranker(bundle)
    check_answers(recaller, smoke)
    check_answers(reranker, smoke)
    (query, *_) = (one.query for one in smoke)
    found = recaller.recall(query)
    user, source = reranker.factors(query)
    assert reranker.rerank(query, Candidates(found.item_idx, source, user)).source == "two-stage"
    np.testing.assert_array_equal(user.values, found.user.values)  # type: ignore[union-attr]
    recaller._recall._tensor.neg_()  # type: ignore[attr-defined]
    with pytest.raises(BundleRefusedError, match="candidates"):
        check_answers(recaller, smoke)
