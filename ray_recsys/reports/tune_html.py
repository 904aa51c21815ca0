"""A search over recipes as one self-contained HTML page: its best trial, plots of all trials, and their table."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from ray_recsys.core.training.trials import Trial
from ray_recsys.reports.page import COLOR, Plot, cards, figure, header, table, write_page
from ray_recsys.storage.location import Location, LocationLike

_COLORS = "viridis"


def write_html(trials: Sequence[Trial], label: str, epochs: int, path: LocationLike) -> None:
    """Writes the page; an existing file is replaced once the new one is complete.

    Args:
        trials: Best first.
        label: Of the metric that decides.
        epochs: That a trial may run at most.
        path: The file.

    Raises:
        InputError: Matplotlib is not installed.
    """
    write_page(path, f"Search: {Location.of(path).parent.name}", lambda plot: _body(trials, label, epochs, path, plot))


def _body(trials: Sequence[Trial], label: str, epochs: int, path: LocationLike, plot: Plot) -> list[str]:
    best, spent = trials[0], sum(trial.num_epochs for trial in trials)
    measured = [trial for trial in trials if trial.error is None and label in trial.metrics]
    figures = {
        f"best {label}": f"{best.metrics[label]:.4f}",
        "trials": f"{len(trials)}",
        "failed": f"{len(trials) - len(measured)}",
        "epochs trained": f"{spent:,}",
        "epochs of a full grid": f"{len(trials) * epochs:,}",
        "epochs saved": f"{1 - spent / max(1, len(trials) * epochs):.0%}",
    }
    keys = list(best.values)
    rows = [
        (
            *(_shown(trial.values[key]) for key in keys),
            f"{trial.metrics[label]:.4f}" if label in trial.metrics else "",
            f"{trial.best_epoch} of {trial.num_epochs}",
            f"{trial.seconds:.0f} s",
            trial.error or "",
        )
        for trial in trials
    ]
    return [
        header("Search over recipes", str(Location.of(path).parent)),
        cards(figures),
        '<h2>Trials</h2><div class="grid">',
        *_figures(measured, label, keys, plot),
        "</div><h2>All trials, best first</h2>",
        table((*keys, label, "best epoch", "time", "error"), rows),
    ]


def _figures(trials: Sequence[Trial], label: str, keys: Sequence[str], plot: Plot) -> Iterable[str]:
    yield figure(
        "Learning curves",
        f"best {label} so far, by epoch; a short line is a trial that was stopped early",
        plot(lambda axes: _draw_curves(axes, trials, label)),
    )
    yield figure(
        "Parallel coordinates",
        "one line a trial over the values tried, each axis from its lowest to its highest; the best trial is bold",
        plot(lambda axes: _draw_parallel(axes, trials, label, keys)),
    )
    numeric = [key for key in keys if all(isinstance(trial.values[key], int | float) for trial in trials)]
    if len(numeric) >= 2:
        x, y = sorted(numeric, key=_map_order)[:2]
        yield figure(f"{x} and {y}", f"the colour is {label}", plot(lambda axes: _draw_map(axes, trials, label, x, y)))


def _map_order(key: str) -> int:
    """Width first, then the learning rate, then the others."""
    return 0 if key.endswith("embedding_dim") else 1 if key.endswith("learning_rate") else 2


def _draw_curves(axes: Any, trials: Sequence[Trial], label: str) -> None:
    for rank, trial in reversed(list(enumerate(trials))):
        style = {"color": COLOR, "linewidth": 2} if rank == 0 else {"color": "#8a979d", "linewidth": 0.9, "alpha": 0.7}
        curve = [value if math.isfinite(value) else math.nan for value in trial.curve]
        axes.plot(range(1, len(curve) + 1), curve, marker=".", markersize=3, **style)
    axes.set(xlabel="epoch", ylabel=label)


def _draw_parallel(axes: Any, trials: Sequence[Trial], label: str, keys: Sequence[str]) -> None:
    columns = [_positions([trial.values[key] for trial in trials]) for key in keys]
    columns.append(_positions([trial.metrics[label] for trial in trials]))
    for rank, heights in reversed(list(enumerate(zip(*columns, strict=True)))):
        style = (
            {"color": COLOR, "linewidth": 2.2} if rank == 0 else {"color": "#8a979d", "linewidth": 0.9, "alpha": 0.7}
        )
        axes.plot(range(len(columns)), heights, **style)
    axes.set_xticks(range(len(columns)), [*(key.rpartition(".")[2] for key in keys), label])
    axes.set_yticks([0, 1], ["lowest", "highest"])


def _positions(values: Sequence[Any]) -> list[float]:
    """Returns heights between 0 and 1: of numbers by size, by logarithm if they span a decade; of others by name."""
    if not all(isinstance(value, int | float) for value in values):
        names = sorted({str(value) for value in values})
        return [names.index(str(value)) / max(1, len(names) - 1) for value in values]
    numbers = [float(value) for value in values]
    if min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
        numbers = [math.log(number) for number in numbers]
    low, span = min(numbers), max(numbers) - min(numbers)
    return [(number - low) / span if span else 0.5 for number in numbers]


def _draw_map(axes: Any, trials: Sequence[Trial], label: str, x: str, y: str) -> None:
    points = axes.scatter(
        [trial.values[x] for trial in trials],
        [trial.values[y] for trial in trials],
        c=[trial.metrics[label] for trial in trials],
        cmap=_COLORS,
        s=60,
        edgecolors="white",
    )
    scales = {key: "log" if min(trial.values[key] for trial in trials) > 0 else "linear" for key in (x, y)}
    axes.set(xlabel=x, ylabel=y, xscale=scales[x], yscale=scales[y])
    axes.figure.colorbar(points, ax=axes, label=label)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
