"""prepare at growing sizes against Polars doing the same job: python -m benchmarks.prepare_scale [--json] [--check].

Logs are synthetic (50 interactions per user, 100,000 items, 1 % dirty rows) and written to a folder that is removed at
the end. Every run is a separate process; prepare and Polars alternate. Memory: see `process_memory`.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from benchmarks.process_memory import MemorySampler

MAX_PEAK_BYTES = 6_000_000_000
MAX_COST_RATIO = 1.3
MIN_POLARS_RATIO = 0.75
CHECKED_ROWS = 50_000_000
COMPARED_ROWS = 20_000_000
RUN_TIMEOUT_S = 1_200


@dataclass(frozen=True, slots=True)
class Measurement:
    """Results of one engine at one size: the median of the runs' seconds, the maximum of their memory."""

    engine: str
    rows: int
    seconds: float
    rows_per_s: float
    peak_bytes: int
    store_bytes: int
    spilled_bytes: int
    largest_process_bytes: dict[str, int]
    counts: dict[str, int]


def run_engine(engine: str, log: Path, work: Path) -> tuple[dict[str, Any], MemorySampler]:
    """Runs an engine once in a separate process; returns its output and its memory."""
    with tempfile.TemporaryDirectory(dir=work) as output:
        command = [sys.executable, "-m", "benchmarks.prepare_scale_run", engine, str(log), output]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with MemorySampler(process.pid) as sampler:
            try:
                text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
                raise
    if process.returncode != 0:
        raise click.ClickException(f"{engine} on {log.name} rows ended with status {process.returncode}")
    return json.loads(text.splitlines()[-1]), sampler


def measure(engines: list[str], log: Path, work: Path, repeats: int) -> list[Measurement]:
    """Measures engines on one log; their runs alternate."""
    runs: dict[str, list[tuple[dict[str, Any], MemorySampler]]] = {engine: [] for engine in engines}
    for _ in range(repeats):
        for engine in engines:
            runs[engine].append(run_engine(engine, log, work))
            result, sampler = runs[engine][-1]
            peak = f"{sampler.peaks.total / 1e9:.2f} GB at peak"
            click.echo(f"{engine:<8} {int(log.name):>13,} rows {result['seconds']:8.1f} s {peak}", err=True)
    rows = int(log.name)
    measurements = []
    for engine, results in runs.items():
        seconds = statistics.median(result["seconds"] for result, _ in results)
        peaks = max((sampler.peaks for _, sampler in results), key=lambda peak: peak.total)
        measurements.append(
            Measurement(
                engine=engine,
                rows=rows,
                seconds=seconds,
                rows_per_s=rows / seconds,
                peak_bytes=peaks.total,
                store_bytes=peaks.shared,
                spilled_bytes=max(result["spilled_bytes"] for result, _ in results),
                largest_process_bytes=dict(peaks.by_name.most_common()),
                counts=results[0][0]["counts"],
            )
        )
    return measurements


def missed_targets(measurements: list[Measurement]) -> list[str]:
    """Returns the missed targets; sizes that were not run are not checked."""
    ours = {m.rows: m for m in measurements if m.engine == "prepare"}
    polars = {m.rows: m for m in measurements if m.engine == "polars"}
    missed = []
    for rows, mine in ours.items():
        if rows == CHECKED_ROWS and mine.peak_bytes >= MAX_PEAK_BYTES:
            missed.append(
                f"{rows:,} rows: {mine.peak_bytes / 1e9:.2f} GB at peak, target at most {MAX_PEAK_BYTES / 1e9}"
            )
        if rows in polars and mine.counts != polars[rows].counts:
            missed.append(f"{rows:,} rows: {mine.counts} but Polars {polars[rows].counts}")
        ratio = mine.rows_per_s / polars[rows].rows_per_s if rows in polars else None
        if ratio is not None and rows >= COMPARED_ROWS and ratio < MIN_POLARS_RATIO:
            missed.append(f"{rows:,} rows: {ratio:.2f} x Polars, target {MIN_POLARS_RATIO}")
    smallest, largest = ours[min(ours)], ours[max(ours)]
    growth = smallest.rows_per_s / largest.rows_per_s
    if growth > MAX_COST_RATIO:
        missed.append(f"a row at {largest.rows:,} costs {growth:.2f} x that at {smallest.rows:,}")
    return missed


def describe_cost(measurements: list[Measurement]) -> list[str]:
    """Returns the cost of a row in prepare at the smallest and largest size (including start-up) and between sizes."""
    ours = sorted((m for m in measurements if m.engine == "prepare"), key=lambda m: m.rows)
    first, last = ours[0], ours[-1]
    growth = first.rows_per_s / last.rows_per_s
    lines = [
        f"a row at {last.rows:,} costs {growth:.2f} x that at {first.rows:,}, both including the start of processes"
    ]
    for before, after in pairwise(ours):
        cost_s = (after.seconds - before.seconds) / (after.rows - before.rows)
        lines.append(f"an additional row between {before.rows:,} and {after.rows:,} costs {cost_s * 1e6:.2f} us")
    return lines


def format_table(measurements: list[Measurement]) -> str:
    """Returns the measurements as text, one line each."""
    polars = {m.rows: m for m in measurements if m.engine == "polars"}
    lines = ["engine           rows  seconds    rows/s  x Polars   peak GB  driver GB  worker GB  store GB  spilled GB"]
    for m in sorted(measurements, key=lambda each: (each.rows, each.engine)):
        ratio = f"{m.rows_per_s / polars[m.rows].rows_per_s:9.2f}" if m.rows in polars else " " * 9
        driver, worker = (m.largest_process_bytes.get(name, 0) / 1e9 for name in ("driver", "worker"))
        lines.append(
            f"{m.engine:<8} {m.rows:>12,} {m.seconds:8.1f} {m.rows_per_s:9,.0f} {ratio} {m.peak_bytes / 1e9:9.2f} "
            f"{driver:10.2f} {worker:10.2f} {m.store_bytes / 1e9:9.2f} {m.spilled_bytes / 1e9:11.2f}"
        )
    return "\n".join(lines)


def write_plot(measurements: list[Measurement], path: Path) -> None:
    """Writes rows/s and peak memory over size, a line per engine."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for engine in sorted({m.engine for m in measurements}):
        points = sorted((m.rows, m.rows_per_s / 1e6, m.peak_bytes / 1e9) for m in measurements if m.engine == engine)
        rows, rates, peaks = zip(*points, strict=True)
        speed.plot(rows, rates, "o-", label=engine)
        memory.plot(rows, peaks, "o-", label=engine)
    speed.set(xscale="log", xlabel="interactions", ylabel="million rows/s", ylim=(0, None))
    memory.set(xscale="log", xlabel="interactions", ylabel="peak resident GB, all processes", ylim=(0, None))
    for axes in (speed, memory):
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.savefig(path)


@click.command()
@click.option("--sizes", default="1000000,10000000,20000000,50000000", help="Interactions, separated by commas.")
@click.option("--repeats", default=1, show_default=True, help="Runs of each engine and size.")
@click.option("--engine", "engines", multiple=True, default=("prepare", "polars"), show_default=True)
@click.option("--work", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Folder for the logs.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also write a plot (.svg or .png).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--check", is_flag=True, help="Exit with status 1 if a target is missed.")
def main(
    *,
    sizes: str,
    repeats: int,
    engines: tuple[str, ...],
    work: Path | None,
    plot: Path | None,
    as_json: bool,
    check: bool,
) -> None:
    measurements = []
    with tempfile.TemporaryDirectory(prefix="prepare-scale-", dir=work) as folder:
        for rows in sorted(int(float(size)) for size in sizes.split(",")):
            log = Path(folder) / str(rows)
            written, _ = run_engine("synthetic", log, Path(folder))
            click.echo(f"log      {rows:>13,} rows {written['seconds']:8.1f} s", err=True)
            measurements += measure(list(engines), log, Path(folder), repeats)
            for file in log.iterdir():
                file.unlink()
    missed = missed_targets(measurements) if "prepare" in engines else []
    if plot is not None:
        write_plot(measurements, plot)
    result = {"measurements": [asdict(m) for m in measurements], "missed": missed}
    click.echo(json.dumps(result) if as_json else format_table(measurements))
    for line in describe_cost(measurements) if "prepare" in engines else []:
        click.echo(line, err=True)
    for line in missed:
        click.echo(f"missed: {line}", err=True)
    if check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
