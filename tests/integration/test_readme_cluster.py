"""The README's cluster commands work as they are written, in an empty shell.

Only what two clusters on one machine cannot share, and the bucket, are substituted: the port of the configuration,
options of `ray start --head` for its ports and temporary directory, and variables that tell clients of those ports. The
log is in the bucket of an S3-compatible server, and so is all that the commands write.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.environment import free_ports
from ray_recsys.storage.cache import DIRECTORY
from ray_recsys.storage.files import list_folder, upload
from ray_recsys.storage.location import Location
from tests.contracts import ROOT
from tests.factories import write_log
from tests.object_store import CREDENTIALS
from tests.ray_heads import head_options, proxy_ports

pytestmark = pytest.mark.ray


def cluster_commands(readme: str) -> str:
    """Returns the shell block of a README that starts a cluster."""
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", readme, re.DOTALL) if "ray start --head" in block]
    assert len(blocks) == 1, "README.md has no block, or several, with `ray start --head`"
    return str(blocks[0])


def test_the_cluster_commands_work_in_an_empty_shell(tmp_path: Path, bucket: Location) -> None:
    write_log(tmp_path / "log.parquet")
    upload(tmp_path / "log.parquet", bucket / "logs" / "log.parquet")
    serve_port, dashboard_port = free_ports(2)
    config = tmp_path / "serve_config.yaml"
    config.write_text((ROOT / "serve_config.yaml").read_text().replace("port: 8000", f"port: {serve_port}"))
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary, home() as directory:
        commands = cluster_commands((ROOT / "README.md").read_text(encoding="utf8"))
        for old, new in (
            ("ray start --head", " ".join(["ray start --head", *head_options(dashboard_port, temporary)])),
            ("s3://my-bucket/recsys", str(bucket)),
            ("serve_config.yaml", str(config)),
        ):
            assert old in commands
            commands = commands.replace(old, new)
        address = f"http://127.0.0.1:{dashboard_port}"
        environment = {
            "HOME": str(directory),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.defpath]),
            "PYTHONPATH": str(ROOT),  # as if this checkout were installed
            "RAY_API_SERVER_ADDRESS": address,  # where `ray job submit` and `serve deploy` would find port 8265
            "RAY_DASHBOARD_ADDRESS": address,
            **{name: os.environ[name] for name in (*CREDENTIALS, "AWS_ENDPOINT_URL", DIRECTORY)},
            **proxy_ports(),
        }
        shell = ["bash", "-euo", "pipefail", "-c", commands]
        done = subprocess.run(
            shell, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        assert set(list_folder(bucket)) == {"logs", "prepared", "run", "registry"}
        user_id = Registry(bucket / "registry").open().users.id_of(0)
        assert len(ask(serve_port, user_id)["items"]) == 10


@contextmanager
def home() -> Iterator[Path]:
    """Yields a home directory with the token that `make demo` leaves; ends every process that has it as HOME."""
    with tempfile.TemporaryDirectory(prefix="home-", ignore_cleanup_errors=True) as name:
        (Path(name) / ".ray").mkdir()
        (Path(name) / ".ray" / "auth_token").write_text("a" * 64)
        try:
            yield Path(name)
        finally:
            for _ in range(10):  # a parent may have started another one meanwhile
                ours = [process for process in psutil.process_iter() if home_of(process) == name]
                for process in ours:
                    process.kill()
                psutil.wait_procs(ours, timeout=5)
                if not ours:
                    break


def home_of(process: psutil.Process) -> str | None:
    try:
        home: str | None = process.environ().get("HOME")
    except psutil.Error:
        return None
    return home


def ask(port: int, user_id: int | str) -> Any:
    """Returns the recommendations of a user, once the application answers."""
    body = json.dumps({"user_id": user_id, "k": 10}).encode()
    deadline_s = time.monotonic() + 120
    while True:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/recommend", body)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except OSError:
            assert time.monotonic() < deadline_s, "the application does not answer"
            time.sleep(0.5)
