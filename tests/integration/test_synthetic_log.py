"""The synthetic log is the same folder whoever writes it."""

from pathlib import Path

import pytest

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.executor import Executor
from ray_recsys.datasets.synthetic import write_synthetic
from ray_recsys.distributed.executor import RayExecutor
from tests.executors import EXECUTOR

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_log_written_on_ray_equals_one_written_here(tmp_path: Path) -> None:
    executors: dict[str, Executor] = {"ray": RayExecutor("synthetic", ClusterRecipe()), "here": EXECUTOR}
    for name, executor in executors.items():
        write_synthetic(tmp_path / name, executor, num_interactions=5_003, num_users=90, num_items=40, num_files=3)
    files = {name: sorted((tmp_path / name).iterdir()) for name in executors}
    assert [file.name for file in files["ray"]] == [f"part-0000{number}.parquet" for number in range(3)]
    assert [file.read_bytes() for file in files["ray"]] == [file.read_bytes() for file in files["here"]]
