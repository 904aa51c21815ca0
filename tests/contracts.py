"""Where the project keeps what its contracts are about: modules, recipes, jobs, and what the README names."""

import pkgutil
import re
from pathlib import Path

import ray_recsys

ROOT = Path(__file__).parents[1]


def module_names(under: str = "ray_recsys") -> list[str]:
    """Returns the dotted names of all modules of the package, or of a part of it."""
    found = pkgutil.walk_packages(ray_recsys.__path__, prefix="ray_recsys.", onerror=lambda _: None)
    return sorted(module.name for module in found if module.name.startswith(under))


def recipe_files() -> list[Path]:
    """Returns every TOML recipe that is shipped."""
    return sorted({*ROOT.glob("jobs/recipes/*.toml"), *ROOT.glob("ray_recsys/recipes/*.toml")})


def job_files() -> list[Path]:
    """Returns what `ray job submit` runs."""
    return sorted(path for path in ROOT.glob("jobs/*.py") if path.name != "__init__.py")


def readme_tree_paths() -> list[str]:
    """Returns the paths in the README's file tree: indented names, a folder's ending in a slash."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    tree = re.search(r"```text\n(ray_recsys/\n.*?)```", text, re.DOTALL)
    assert tree is not None, "README.md has no file tree"
    folders: list[str] = []
    paths = []
    for line in tree[1].splitlines():
        name = re.match(r"( *)(\S+)", line)
        if name is None:
            continue
        depth = len(name[1]) // 2
        del folders[depth:]
        paths.append("".join(folders) + name[2])
        if name[2].endswith("/"):
            folders.append(name[2])
    return paths


def readme_commands() -> list[str]:
    """Returns the commands of `ray-recsys` that the README shows."""
    text = (ROOT / "README.md").read_text(encoding="utf8")
    return sorted(set(re.findall(r"(?:^|\s)ray-recsys ([a-z]+)", text)))
