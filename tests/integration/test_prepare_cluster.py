"""prepare gives the same bytes on clusters of 4 CPUs and of 1, and on one that loses a node meanwhile."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.datasets.synthetic import SyntheticLog, write_block
from tests.integration.prepare_on_clusters import EXECUTOR, RECIPE, digests

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

TIMEOUT_S = 240
LOG = SyntheticLog(num_interactions=48_000, num_users=1_500, num_items=400, num_files=12, dirty_share=0.05, seed=3)


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_every_cluster_gives_the_same_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.mkdir()
    for block in range(LOG.num_files):
        write_block(LOG, log, block)
    command = [sys.executable, "-m", "tests.integration.prepare_on_clusters", str(log), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as others:
        prepare([str(log)], tmp_path / "prepared-here", RECIPE, EXECUTOR)
        output, errors = others.communicate(timeout=TIMEOUT_S)
    assert others.returncode == 0, errors[-4_000:]
    files = digests(tmp_path / "prepared-here")
    assert sum(name.startswith("users/") for name in files) == 6
    assert {"items.parquet", "drops/null_user.jsonl"} <= set(files)
    results = json.loads(output.splitlines()[-1])
    assert set(results) == {"one CPU", "a lost node"}
    for shape, result in results.items():
        assert result["files"] == files, shape
    assert results["a lost node"]["num_lost"] == 1
    assert results["a lost node"]["num_alive"] == 3, "the head and two of the three nodes"
    assert [path.name for path in tmp_path.glob(".prepared-*")] == []
