import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ray_recsys.cli import cli
from ray_recsys.config.files import load_recipe
from tests.contracts import ROOT, job_files, module_names, readme_commands, readme_tree_paths, recipe_files

# Ray Serve's own models use what pydantic 2.14 deprecates.
_RAY_SERVE_UNDER_PYDANTIC = "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
_IMPORT_ALL = """
import importlib, logging, sys, threading
handlers = list(logging.getLogger().handlers)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert logging.getLogger().handlers == handlers, "a root logging handler was added"
assert threading.enumerate() == [threading.main_thread()], f"threads: {threading.enumerate()}"
ray = sys.modules.get("ray")
assert ray is None or not ray.is_initialized(), "Ray was started"
sys.exit(3 if ray else 0)
"""


def _import_all(names: list[str], empty: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-W", _RAY_SERVE_UNDER_PYDANTIC, "-c", _IMPORT_ALL, *names],
        check=False,
        capture_output=True,
        text=True,
        cwd=empty,
        timeout=120,
    )


def test_importing_any_module_starts_opens_and_logs_nothing(tmp_path: Path) -> None:
    done = _import_all(module_names(), tmp_path)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 3  # imported, and not started
    assert list(tmp_path.iterdir()) == []


def test_core_never_imports_ray(tmp_path: Path) -> None:
    done = _import_all(["ray_recsys.config.files", *module_names("ray_recsys.core")], tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("path", recipe_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path) is not None
    assert path.read_text(encoding="utf8").startswith("#"), "a recipe opens with what its data are"


def test_the_demo_has_one_recipe() -> None:
    assert (ROOT / "jobs/recipes/demo.toml").samefile(ROOT / "ray_recsys/recipes/demo.toml")


def test_each_command_for_a_cluster_is_a_job() -> None:
    assert {path.stem for path in job_files()} == set(cli.commands) - {"demo", "init", "recipe"}


@pytest.mark.parametrize("path", job_files(), ids=lambda path: path.name)
def test_a_job_is_thin_and_shadows_no_standard_module(path: Path) -> None:
    text = path.read_text(encoding="utf8")
    assert len(text.splitlines()) <= 60
    assert path.stem not in sys.stdlib_module_names
    assert f'main(["{path.stem}", *sys.argv[1:], "--json"])' in text


@pytest.mark.parametrize("name", module_names())
def test_modules_open_with_what_they_do_and_stay_readable(name: str) -> None:
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf8"))
    assert ast.get_docstring(tree)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max(functions, key=lambda f: (f.end_lineno or 0) - f.lineno, default=None)
    if longest is not None:
        assert (longest.end_lineno or 0) - longest.lineno < 60, f"{longest.name} is too long to read"


def test_readme_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.splitlines()) <= 200
    missing = [path for path in readme_tree_paths() if not (ROOT / path).exists()]
    assert missing == []
    assert set(readme_commands()) == set(cli.commands)
