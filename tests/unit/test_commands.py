"""What the commands print for people, from a log to scores; an executor of this process stands in for the cluster's."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ray_recsys.cli import main
from ray_recsys.commands.invocation import Invocation
from ray_recsys.core.prepared import PreparedSet
from tests.executors import EXECUTOR
from tests.factories import make_prepared_set, replace_user_ids, write_log

KNN = ("--set", "model.name=item_knn")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a log of 60 users; commands run in this process meanwhile."""

    @contextlib.contextmanager
    def connect(_: Invocation) -> Iterator[object]:
        yield EXECUTOR

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Invocation, "connect", connect)
        directory = tmp_path_factory.mktemp("commands")
        write_log(directory / "log.parquet")
        yield directory


def printed(*arguments: object, status: int = 0) -> str:
    """Runs a command; returns what it prints on stdout."""
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert main([*map(str, arguments)]) == status
    return stdout.getvalue()


def value_of(text: str, name: str) -> str:
    """Returns the value beside a name in a table of facts."""
    found = re.findall(rf"^{re.escape(name)}  +(.+)$", text, re.MULTILINE)
    assert len(found) == 1, text
    return str(found[0])


@pytest.fixture(scope="module")
def prepared(home: Path) -> tuple[Path, str]:
    """The prepared set of a log in which 2 rows are bad, and what `prepare` printed."""
    rows = pq.read_table(home / "log.parquet")
    bad = pa.table({"user_id": [None, "user-00"], "item_id": ["item-00", None], "timestamp": [1, 1]}, rows.schema)
    pq.write_table(pa.concat_tables([rows, bad]), home / "dirty.parquet")
    return home / "data", printed("prepare", "--input", home / "dirty.parquet", "--output", home / "data")


@pytest.fixture(scope="module")
def run(home: Path, prepared: tuple[Path, str]) -> tuple[Path, str]:
    return home / "run", printed("train", "--data", prepared[0], "--output", home / "run", *KNN)


@pytest.fixture(scope="module")
def published(home: Path, prepared: tuple[Path, str], run: tuple[Path, str]) -> tuple[Path, str]:
    arguments = ("--run", run[0], "--data", prepared[0], "--registry", home / "registry")
    return home / "registry", printed("publish", *arguments)


def test_prepare_counts_rows_and_what_was_dropped_by_reason(prepared: tuple[Path, str]) -> None:
    _, text = prepared
    assert (value_of(text, "users"), value_of(text, "items")) == ("60", "30")
    assert (value_of(text, "training"), value_of(text, "validation"), value_of(text, "test")) == ("600", "60", "60")
    assert (value_of(text, "rows in"), value_of(text, "rows kept")) == ("722", "720")
    assert (value_of(text, "null_user"), value_of(text, "null_item")) == ("1", "1")


def test_an_existing_set_is_replaced_only_when_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("prepare", "--input", home / "log.parquet", "--output", home / "again")
    printed(*arguments)
    other = ("--set", "prepare.min_interactions_per_user=12", *arguments[1:])
    capsys.readouterr()
    assert printed("prepare", *other, status=2) == ""
    assert "(prepare.min_interactions_per_user: was 1, now 12)" in capsys.readouterr().err
    printed("prepare", *other, "--overwrite")
    assert PreparedSet.open(home / "again").manifest.recipe.prepare.min_interactions_per_user == 12


def test_audit_names_the_faults_and_fails(home: Path, prepared: tuple[Path, str]) -> None:
    assert value_of(printed("audit", "--data", prepared[0]), "passed") == "yes"
    damaged = make_prepared_set(home / "twice")
    ids = [str(user) for user in damaged.read_user_ids(1).to_pylist()]
    replace_user_ids(damaged, 1, [ids[1], *ids[1:]])
    text = printed("audit", "--data", home / "twice", status=2)
    assert value_of(text, "passed") == "no"
    assert ids[1] in text


def test_describe_shows_spreads_split_and_time(prepared: tuple[Path, str]) -> None:
    text = printed("describe", "--data", prepared[0])
    assert value_of(text, "num users") == "60"
    assert re.search(r"^interactions per user +12 .* 12\.0  0\.000$", text, re.MULTILINE)
    assert value_of(text, "method") == "leave_one_out"
    assert value_of(text, "first") == "1970-01-12 13:46:40 UTC"  # 1,000,000 s


def test_train_shows_the_validation(run: tuple[Path, str]) -> None:
    path, text = run
    assert value_of(text, "run") == str(path)
    assert (path / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--resume", "--refit", "run"), "--resume and --refit exclude each other"),
        (("--warm-start", "bundle", "--refit", "run"), "--warm-start and --refit exclude each other"),
    ],
)
def test_train_refuses_options_that_contradict(
    tmp_path: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(tmp_path), "--output", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_evaluate_has_a_column_per_model_and_both_stages(
    home: Path, prepared: tuple[Path, str], run: tuple[Path, str]
) -> None:
    arguments = ("evaluate", "--model", run[0], "--data", prepared[0], "--html", home / "page.html")
    text = printed(*arguments, "--two-stage")
    assert "full ranking of test, ± standard error over users" in text
    assert re.search(r"^metric +ItemKNN +Popularity +Random$", text, re.MULTILINE)
    assert re.search(r"^NDCG@10 +0\.\d{4} ±0\.\d{4} +0\.\d{4} ±0\.\d{4} +0\.\d{4} ±0\.\d{4}", text, re.MULTILINE)
    assert "NDCG@10 by training interactions of the user" in text
    assert re.search(r"^ItemKNN: NDCG@10 0\.\d{4} over the whole catalogue", text, re.MULTILINE)
    assert (home / "page.html").read_text(encoding="utf8").count("<svg") > 0


def test_evaluate_counts_candidates_that_the_model_does_not_know(
    home: Path, prepared: tuple[Path, str], run: tuple[Path, str]
) -> None:
    rows = {"user_id": ["user-00"] * 2 + ["nobody"], "item_id": ["item-00", "new", "item-01"], "label": [1, 0, 1]}
    pyarrow.csv.write_csv(pa.table(rows), home / "candidates.csv")
    arguments = ("evaluate", "--model", run[0], "--data", prepared[0], "--candidates", home / "candidates.csv")
    text = printed(*arguments)
    assert "not in the model's data" in text
    assert (value_of(text, "users"), value_of(text, "candidates")) == ("1", "1")


def test_publish_shows_the_version_and_the_registry_lists_it(published: tuple[Path, str]) -> None:
    registry, text = published
    version = value_of(text, "version")
    listed = printed("registry", "list", "--registry", registry)
    assert re.search(rf"{version} .*\blive\b", listed)
    assert version in printed("registry", "show", "--registry", registry)


def test_an_arm_is_published_beside_the_live_version_and_ended(
    prepared: tuple[Path, str], run: tuple[Path, str], published: tuple[Path, str]
) -> None:
    registry, live = published[0], value_of(published[1], "version")
    arguments = ("publish", "--run", run[0], "--data", prepared[0], "--registry", registry)
    version = value_of(
        printed(*arguments, "--arm", "B", "--percent", "5", "--set", "bundle.num_neighbours=3"), "version"
    )
    assert version != live
    listed = printed("registry", "list", "--registry", registry)
    assert re.search(rf"{live} .*\blive\b", listed)
    assert re.search(rf"{version} .*\bB\b", listed)
    printed("registry", "end", "--registry", registry, "B")
    assert not re.search(rf"{version} .*\bB\b", printed("registry", "list", "--registry", registry))


def test_recommend_and_score_count_rows_and_unknown_ids(home: Path, published: tuple[Path, str]) -> None:
    (home / "users.txt").write_text("user-03\nnobody\n")
    lists = ("recommend", "--bundle", published[0], "--output", home / "lists", "--users", home / "users.txt")
    text = printed(*lists, "--k", 4)
    rows = pq.read_table(home / "lists").to_pylist()
    assert {row["user_id"] for row in rows} >= {"user-03"}
    assert max(row["rank"] for row in rows) in (3, 4)
    assert value_of(text, "num users") == str(len({row["user_id"] for row in rows}))
    (home / "pairs.csv").write_text("user_id,item_id\nuser-03,item-00\nnobody,item-00\n")
    pairs = ("score", "--bundle", published[0], "--input", home / "pairs.csv", "--output", home / "scores.csv")
    text = printed(*pairs)
    assert (value_of(text, "num rows"), value_of(text, "num unknown")) == ("2", "1")


def test_pipeline_shows_its_stages_and_the_gate(home: Path) -> None:
    arguments = ("pipeline", "--input", home / "log.parquet", "--output", home / "nightly", "--registry")
    first = printed(*arguments, home / "nightly/registry", *KNN)
    for stage in ("prepare", "train", "evaluate", "publish"):
        assert re.search(rf"^{stage} +ran ", first, re.MULTILINE)
    again = printed(*arguments, home / "nightly/registry", *KNN)
    assert not re.search(r"^(prepare|train) +ran ", again, re.MULTILINE)
    assert value_of(again, "live") == value_of(first, "live")
    assert value_of(again, "gate") == "skipped: nothing has changed since it was passed"


def test_ab_needs_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ab", "--impressions", str(tmp_path), "--log", str(tmp_path / "log.parquet")]
    untimed = ["--set", "input.timestamp_column=none", "--set", "split.method=random_per_user"]
    assert main([*arguments, *untimed]) == 2
    assert "input.timestamp_column is not set" in capsys.readouterr().err
