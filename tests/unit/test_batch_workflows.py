"""`recommend` and `score` on a bundle: equal to the recommender, rows and order kept, unknown ids counted."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.training.lease import leased
from ray_recsys.core.workflows.recommend import RecommendResult, recommend
from ray_recsys.core.workflows.score import ScoreResult, score
from ray_recsys.errors import ArtifactError, DataError, EmptyDataError
from tests.bundles import make_bundle
from tests.factories import make_prepared_set

EXECUTOR = SerialExecutor()
Result = TypeVar("Result")


def run_recommend(bundle: Bundle, output: Path, **options: Any) -> RecommendResult:
    return recommend(bundle.path, output, EXECUTOR, num_candidates=200, **options)


def run_score(bundle: Bundle, source: Path, output: Path) -> ScoreResult:
    return score(bundle.path, source, output, EXECUTOR)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("batch")
    make_bundle(directory / "bundle", make_prepared_set(directory / "set", num_users=2500))
    return Bundle.open(directory / "bundle")


def test_every_user_gets_what_the_recommender_gives(bundle: Bundle, tmp_path: Path) -> None:
    result = run_recommend(bundle, tmp_path / "out", k=7)
    table = pq.read_table(tmp_path / "out")
    assert (result.num_users, result.num_recommendations) == (2500, table.num_rows)
    assert (result.sources, result.num_unknown_users) == ({"two-stage": 2500}, 0)
    assert table.column_names == ["user_id", "rank", "item_id", "score", "title", "source"]
    names = [f"part-{number:05d}.parquet" for number in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_SUCCESS", "_job.json", *names]
    recommender = Recommender(bundle)
    for user_idx in (0, 1, 1023, 1024, 2499):
        rows = table.filter(pa.compute.equal(table["user_id"], bundle.users.id_of(user_idx)))
        expected = recommender.recommend(Query(user_idx, k=7))
        items = bundle.catalogue.describe(expected.item_idx)
        assert rows["item_id"].to_pylist() == [item.item_id for item in items]
        assert rows["title"].to_pylist() == [item.title for item in items]
        assert rows["rank"].to_pylist() == list(range(1, 8))
        np.testing.assert_allclose(rows["score"].to_numpy(), expected.scores, rtol=1e-5)


@pytest.mark.parametrize("name", ["users.txt", "users.csv", "users.parquet"])
def test_given_users_come_in_their_order_and_unknown_ones_get_popular_items(
    bundle: Bundle, tmp_path: Path, name: str
) -> None:
    ids = ["user-00042", "nobody", "user-00007", "user-00042"]
    if name == "users.txt":
        (tmp_path / name).write_text("\n".join(ids) + "\n")
    elif name == "users.csv":
        (tmp_path / name).write_text("\n".join(["user_id", *ids]) + "\n")
    else:
        pq.write_table(pa.table({"user_id": ids}), tmp_path / name)
    result = run_recommend(bundle, tmp_path / "out", users=tmp_path / name, k=3)
    assert (result.num_users, result.num_unknown_users) == (3, 1)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["user_id"] for row in rows] == [id_ for id_ in ids[:3] for _ in range(3)]
    assert [row["source"] for row in rows[::3]] == ["two-stage", "popular", "two-stage"]
    popular = bundle.catalogue.table["item_id"].to_pylist()[:3]
    assert [row["item_id"] for row in rows[3:6]] == popular
    with pytest.raises(
        ArtifactError, match=r"another job \(users_sha256: '[0-9a-f]+', now None, num_users: 3, now 2500"
    ):
        run_recommend(bundle, tmp_path / "out", k=3)
    with pytest.raises(ArtifactError, match="exists already"):
        run_recommend(bundle, tmp_path, k=3)


class Killed(SerialExecutor):
    """Ends after a number of tasks, as a killed driver does."""

    def __init__(self, num_tasks: int) -> None:
        self._num_tasks = num_tasks

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
        """Yields the results of the first tasks."""
        yield from super().map(task, min(num_tasks, self._num_tasks), stage=stage)
        raise KeyboardInterrupt


def test_a_killed_job_keeps_what_is_whole_and_makes_the_rest(bundle: Bundle, tmp_path: Path) -> None:
    expected = run_recommend(bundle, tmp_path / "whole", k=5)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        recommend(bundle.path, out, Killed(2), num_candidates=200, k=5)
    assert not (out / "_SUCCESS").exists()
    parts = [out / f"part-{number:05d}.parquet" for number in range(3)]
    assert [path.exists() for path in parts] == [True, True, False]
    (out / ".part-00002.parquet.tmp-1f").write_bytes(b"PAR1")  # a write that was cut off
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 4] ^= 1
    parts[1].write_bytes(content)
    kept = parts[0].stat().st_mtime_ns
    with pytest.raises(ArtifactError, match=r"holds the lists of another job \(k: 5, now 6\)"):
        run_recommend(bundle, out, k=6)
    result = run_recommend(bundle, out, k=5)
    assert (result.num_parts, result.num_kept_parts) == (3, 1)
    assert (result.sources, result.num_recommendations) == (expected.sources, expected.num_recommendations)
    assert parts[0].stat().st_mtime_ns == kept
    assert pq.read_table(out) == pq.read_table(tmp_path / "whole")
    assert run_recommend(bundle, out, k=5).num_kept_parts == 3


def test_a_job_that_is_running_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recommend(bundle.path, tmp_path / "out", Killed(1), num_candidates=200)
    with leased(tmp_path / "out"), pytest.raises(ArtifactError, match="in use by process"):
        run_recommend(bundle, tmp_path / "out")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_scores_keep_rows_order_and_columns(bundle: Bundle, tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    user_idx, item_idx = rng.integers(0, 2500, 70_000), rng.integers(0, 40, 70_000)
    users = bundle.users.ids_of(user_idx).to_pylist()
    items = bundle.catalogue.table["item_id"].take(pa.array(item_idx)).to_pylist()
    users[5], items[66_000] = "nobody", "nothing"
    table = pa.table({"note": [f"0{i}" for i in range(70_000)], "item_id": items, "user_id": users})
    source, output = tmp_path / f"pairs.{ending}", tmp_path / "deep" / f"scores.{ending}"
    (pq.write_table if ending == "parquet" else pacsv.write_csv)(table, source)
    result = run_score(bundle, source, output)
    assert (result.num_rows, result.num_unknown) == (70_000, 2)
    as_text = pacsv.ConvertOptions(column_types={"note": pa.string()})
    written = pq.read_table(output) if ending == "parquet" else pacsv.read_csv(output, convert_options=as_text)
    assert written.drop_columns("score").to_pylist() == table.to_pylist()
    scores = written["score"].to_pylist()
    assert [i for i, value in enumerate(scores) if value is None] == [5, 66_000]
    recommender = Recommender(bundle)
    best = recommender.recommend(Query(int(user_idx[0]), k=40, exclude_seen=False))
    rank = best.item_idx.tolist().index(item_idx[0])
    assert scores[0] == pytest.approx(best.scores[rank], abs=1e-5)


def test_files_that_cannot_be_used(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("user_id\n")
    with pytest.raises(EmptyDataError, match="no rows"):
        run_recommend(bundle, tmp_path / "out", users=tmp_path / "empty.csv")
    pq.write_table(pa.table({"user_id": [1.0]}), tmp_path / "floats.parquet")
    with pytest.raises(DataError, match=r"floats\.parquet, column user_id: ids cannot be of type double"):
        run_recommend(bundle, tmp_path / "out", users=tmp_path / "floats.parquet")
    (tmp_path / "floats.parquet").unlink()
    with pytest.raises(DataError, match="no column item_id"):
        run_score(bundle, tmp_path / "empty.csv", tmp_path / "out.csv")
    (tmp_path / "pairs.csv").write_text("user_id,item_id,score\na,b,1\n")
    with pytest.raises(DataError, match="a column score already"):
        run_score(bundle, tmp_path / "pairs.csv", tmp_path / "out.csv")
    with pytest.raises(DataError, match=r"'\.json'"):
        run_score(bundle, tmp_path / "pairs.csv", tmp_path / "out.json")
    with pytest.raises(DataError, match="does not exist"):
        run_score(bundle, tmp_path / "none.csv", tmp_path / "out.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        run_score(bundle, tmp_path / "bad.parquet", tmp_path / "out.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.parquet", "empty.csv", "pairs.csv"]
