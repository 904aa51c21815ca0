"""`prepare` killed in the middle leaves nothing that a reader would open, and the next run cleans up and succeeds."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.datasets.synthetic import SyntheticLog, write_block
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.errors import ArtifactError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

LOG = SyntheticLog(num_interactions=600_000, num_users=9_000, num_items=900, num_files=12, seed=4)
WAIT_S = 60.0


def unpublished_files_of(output: Path) -> list[Path]:
    return list(output.parent.glob(f".{output.name}.tmp-*/*"))


def test_a_killed_prepare_leaves_nothing_readable_and_a_rerun_succeeds(tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "prepared"
    log.mkdir()
    for block in range(LOG.num_files):
        write_block(LOG, log, block)
    command = [sys.executable, "-m", "ray_recsys.cli", "prepare", "--input", str(log), "--output", str(output)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + WAIT_S
    while not unpublished_files_of(output) and time.monotonic() < deadline_s:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(WAIT_S)
    assert [path.name[:14] for path in tmp_path.glob(".*")] == [".prepared.tmp-"]
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        PreparedSet.open(output)
    manifest = prepare([str(log)], output, Recipe(), RayExecutor("prepare", ClusterRecipe()))
    assert manifest.rows_in == LOG.num_interactions
    PreparedSet.open(output).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "prepared"]
