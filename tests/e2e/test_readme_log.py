"""The README's commands for one's own log work as they are written, in an empty shell and directory.

`serve` would run for ever: it is started and asked, then interrupted. The demo has a test of its own.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.distributed.environment import free_ports
from tests.contracts import ROOT
from tests.integration.test_readme_cluster import ask

pytestmark = [pytest.mark.e2e, pytest.mark.ray]
NUM_USERS, NUM_ITEMS, PER_USER = 120, 60, 12


def log_commands() -> list[str]:
    """Returns the lines of the README's shell block that starts with a log."""
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "ray-recsys prepare" in block]
    assert len(blocks) == 1, "README.md has no block, or several, with `ray-recsys prepare`"
    return [line.split("#")[0].rstrip() for line in blocks[0].splitlines()]


def test_the_commands_for_a_log_work_in_an_empty_shell(tmp_path: Path) -> None:
    write_log(tmp_path)
    (port,) = free_ports(1)
    environment = {
        "HOME": str(tmp_path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
        "PYTHONPATH": str(ROOT),  # as if this checkout were installed
    }
    for line in log_commands():
        if line.startswith(("ray-recsys demo", "ray-recsys ab")):  # tests of their own; `ab` needs days of impressions
            continue
        if line.startswith("ray-recsys serve"):
            with serving(f"{line} --port {port}", tmp_path, environment):
                assert len(ask(port, "customer-7")["items"]) == 10
            continue
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    scores = pq.read_table(tmp_path / "scores.parquet")
    assert scores.num_rows == NUM_ITEMS
    lists = pq.read_table(tmp_path / "lists")
    assert len(set(lists["user_id"].to_pylist())) == NUM_USERS
    assert (tmp_path / "compared" / "report.html").is_file()


def write_log(directory: Path) -> None:
    """Writes logs/part.parquet, with the README's name of the user column, pairs.parquet, A.toml and B.toml."""
    random = np.random.default_rng(5)
    users = np.repeat(np.arange(NUM_USERS), PER_USER)
    items = np.concatenate([random.choice(NUM_ITEMS, PER_USER, replace=False) for _ in range(NUM_USERS)])
    log = {
        "customer": [f"customer-{user}" for user in users],
        "item_id": [f"item-{item}" for item in items],
        "timestamp": pa.array(np.arange(len(users)) + 1_700_000_000),
    }
    (directory / "logs").mkdir()
    pq.write_table(pa.table(log), directory / "logs" / "part.parquet")
    pairs = {"user_id": ["customer-7"] * NUM_ITEMS, "item_id": [f"item-{item}" for item in range(NUM_ITEMS)]}
    pq.write_table(pa.table(pairs), directory / "pairs.parquet")
    (directory / "A.toml").write_text('[model]\nname = "item_knn"\n')
    (directory / "B.toml").write_text('[model]\nname = "popularity"\n')


@contextmanager
def serving(line: str, directory: Path, environment: dict[str, str]) -> Iterator[None]:
    """Runs a command that serves until it is interrupted; it must end in order."""
    command = ["bash", "-c", f"exec {line}"]
    log = (directory / "serve.log").open("w+")
    server = subprocess.Popen(command, cwd=directory, env=environment, stdout=log, stderr=log)
    try:
        yield
        server.send_signal(signal.SIGINT)
        assert server.wait(60) in (0, 130), (directory / "serve.log").read_text()[-3000:]
    finally:
        server.kill()
        server.wait(10)
        log.close()
