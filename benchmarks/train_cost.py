"""Cost of training a recipe: seconds and peak memory of `ray-recsys train`, with every process that it starts.

    python -m benchmarks.train_cost --data prepared --recipes A.toml B.toml [--set KEY=VALUE] [--json]

Memory is resident and counted once (see `process_memory`), Ray's object store included. There is no refit.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from benchmarks.process_memory import MemorySampler

_TIMEOUT_S = 3600


def measure(data: Path, recipe: Path, overrides: tuple[str, ...]) -> dict[str, float]:
    """Returns seconds from start to exit, peak gigabytes of all processes, and of the largest process."""
    with tempfile.TemporaryDirectory() as directory:
        settings = [word for value in ("train.refit=false", *overrides) for word in ("--set", value)]
        command = [sys.executable, "-m", "ray_recsys.cli", "train", "--data", str(data), "--recipe", str(recipe)]
        start_s = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--output", str(Path(directory) / "run"), *settings, "--json"], stdout=subprocess.PIPE, text=True
        )
        with MemorySampler(process.pid) as sampler:
            answer, _ = process.communicate(timeout=_TIMEOUT_S)
        if process.returncode:
            raise SystemExit(f"{recipe}: `train` exited with status {process.returncode}")
    return {
        "seconds": time.perf_counter() - start_s,
        "train_s": json.loads(answer)["wall_s"],
        "peak_gb": sampler.peaks.total / 1e9,
        "largest_gb": max(sampler.peaks.by_name.values(), default=0) / 1e9,
    }


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The prepared set.")
@click.option("--recipes", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE...")
@click.argument("more_recipes", type=click.Path(path_type=Path), nargs=-1, metavar="")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `train`.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def main(
    *, data: Path, recipes: tuple[Path, ...], more_recipes: tuple[Path, ...], overrides: tuple[str, ...], as_json: bool
) -> None:
    """Measures trainings one after the other."""
    found = {file.stem: measure(data, file, overrides) for file in (*recipes, *more_recipes)}
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, one in found.items():
        click.echo(
            f"{name:<20}{one['seconds']:8.1f} s ({one['train_s']:.1f} s of training)   peak {one['peak_gb']:.2f} GB, "
            f"largest process {one['largest_gb']:.2f} GB"
        )


if __name__ == "__main__":
    main()
