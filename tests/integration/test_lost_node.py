"""A node lost for good: training ends within a stated time and says what is missing, or goes on with fewer workers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ray_recsys.config.files import dump_recipe, parse_recipe
from ray_recsys.core.training.run import Run, is_unfinished
from tests.factories import make_prepared_set

pytestmark = pytest.mark.ray
START_TIMEOUT_S = 40


def train_on_two_nodes(directory: Path, **cluster: object) -> tuple[list[str], float]:
    """Returns the lines of `two_nodes`, and the seconds between the loss and the end."""
    sections = {
        "model": {"embedding_dim": 4, "mlp_layers": [8, 4]},
        "train": {"epochs": 60, "batch_size": 16, "early_stopping_epochs": "none"},
        # A node holds one worker: 0.7 of its 1 CPU.
        "cluster": {"cpus_per_worker": 0.7, "threads_per_worker": 1, "start_timeout_s": START_TIMEOUT_S, **cluster},
    }
    data = make_prepared_set(directory / "data", num_users=300)
    (directory / "recipe.toml").write_text(dump_recipe(parse_recipe(sections, "test")), encoding="utf8")
    command = [sys.executable, "-m", "tests.integration.two_nodes", str(data.path), str(directory / "run")]
    lines, lost_s = [], 0.0
    with subprocess.Popen([*command, str(directory / "recipe.toml")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] == "removing a node":
                lost_s = time.monotonic()
            if lines[-1].startswith(("error", "done")):
                took_s = time.monotonic() - lost_s
        process.wait(60)
    return lines, took_s


def test_without_a_minimum_the_loss_is_an_error_in_time(tmp_path: Path) -> None:
    lines, took_s = train_on_two_nodes(tmp_path)
    assert "removing a node" in lines
    assert lines[-1].startswith("error: training stopped: 2 train workers of 0.7 CPUs find no room"), lines
    assert "1 nodes, which have 1 CPUs; waited 40 s" in lines[-1].replace("'", "")
    assert "--resume" in lines[-1]
    assert took_s < START_TIMEOUT_S + 60  # beside noticing the loss and starting the controller's attempts
    assert is_unfinished(tmp_path / "run")


def test_with_a_minimum_training_goes_on_with_fewer_workers(tmp_path: Path) -> None:
    # Ray still counts a lost node for up to 40 s, and a second attempt to start workers comes after half of the time.
    lines, _ = train_on_two_nodes(tmp_path, min_workers=1, start_timeout_s=100)
    assert "removing a node" in lines
    assert any("a worker was lost" in line for line in lines), lines
    assert lines[-1] == "done", lines
    assert Run.open(tmp_path / "run").manifest.num_epochs == 60
