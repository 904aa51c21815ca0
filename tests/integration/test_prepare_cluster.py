"""prepare gives the same bytes on clusters of 1, 2 and 8 CPUs, and on one that loses a node meanwhile."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.datasets.synthetic import SyntheticLog, write_block

pytestmark = pytest.mark.ray

TIMEOUT_S = 240
LOG = SyntheticLog(num_interactions=48_000, num_users=1_500, num_items=400, num_files=12, dirty_share=0.05, seed=3)


def prepare_on(tmp_path: Path, *shapes: str) -> dict[str, Any]:
    log = tmp_path / "log"
    log.mkdir()
    for block in range(LOG.num_files):
        write_block(LOG, log, block)
    command = [sys.executable, "-m", "tests.integration.prepare_on_clusters", str(log), str(tmp_path), *shapes]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ran.returncode == 0, ran.stderr[-4_000:]
    results: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return results


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_every_cluster_gives_the_same_bytes(tmp_path: Path) -> None:
    results = prepare_on(tmp_path, "1", "2", "8", "lose-a-node")
    files = results["1"]["files"]
    assert sum(name.startswith("users/") for name in files) == 6
    assert {"items.parquet", "drops/null_user.jsonl"} <= set(files)
    for shape, result in results.items():
        assert result["files"] == files, shape
    assert results["lose-a-node"]["num_lost"] == 1
    assert results["lose-a-node"]["num_alive"] == 3, "the head and two of the three nodes"
    assert [path.name for path in tmp_path.glob(".prepared-*")] == []
