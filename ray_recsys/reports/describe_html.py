"""A description of a prepared set as one self-contained HTML page with plots."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from ray_recsys.core.inspecting.describe import DAY_S, Description, Spread
from ray_recsys.reports.page import COLOR, Plot, cards, figure, header, table, write_page
from ray_recsys.storage.location import LocationLike


def write_html(description: Description, path: LocationLike) -> None:
    """Writes the page; an existing file is replaced once the new one is complete.

    Raises:
        InputError: Matplotlib is not installed.
    """
    write_page(path, f"Prepared set: {Path(description.data).name}", lambda plot: _body(description, plot))


def _body(description: Description, plot: Plot) -> list[str]:
    return [
        header("Prepared set", f"{description.data} · created {description.created_at}"),
        _cards(description),
        '<h2>Shape</h2><div class="grid">',
        *_figures(description, plot),
        "</div><h2>Activity and popularity</h2>",
        _spread_table(description),
        "<h2>Rows of the log</h2>",
        _drops_table(description),
        "<h2>Split</h2>",
        table(("", ""), [(_words(key), _value(value)) for key, value in description.split.items()], is_text=True),
    ]


def _cards(description: Description) -> str:
    time = description.time
    figures = {
        "users": f"{description.num_users:,}",
        "items": f"{description.num_items:,}",
        "interactions": f"{description.num_interactions:,}",
        "density": f"{description.density:.3%}",
        "training": f"{description.num_training:,}",
        "validation": f"{description.num_validation:,}",
        "test": f"{description.num_test:,}",
    }
    if time is not None:
        figures |= {"first day": _day(time.first_s), "last day": _day(time.last_s)}
    return cards(figures)


def _figures(description: Description, plot: Plot) -> Iterable[str]:
    yield figure(
        "User activity",
        f"users by their number of interactions; median {description.activity.quantiles['0.5']:,}",
        plot(lambda axes: _draw_spread(axes, description.activity, "at least this many interactions", "users")),
    )
    yield figure(
        "Item popularity",
        f"items by their training interactions; median {description.popularity.quantiles['0.5']:,}",
        plot(
            lambda axes: _draw_spread(axes, description.popularity, "at least this many training interactions", "items")
        ),
    )
    yield figure(
        "Concentration of popularity",
        f"share of the interactions that belong to the most popular items; Gini {description.popularity.gini:.3f}",
        plot(lambda axes: _draw_concentration(axes, description.popularity_curve)),
    )
    time = description.time
    if time is not None:
        cuts = {key: value for key, value in description.split.items() if key.endswith("_from_s") and value is not None}
        yield figure(
            "Interactions over time",
            "interactions per day, or per group of days" + ("; dashed: cuts of the split" if cuts else ""),
            plot(lambda axes: _draw_days(axes, time.interactions_per_day, list(cuts.values()))),
        )


def _draw_spread(axes: Any, spread: Spread, x_label: str, y_label: str) -> None:
    """Draws how many have at least a given count: exact whatever the bins, and straight for a power law."""
    counts, frequencies = zip(*spread.histogram, strict=True)
    at_least = list(accumulate(reversed(frequencies)))[::-1]
    axes.plot(counts, at_least, "o-", markersize=2.5, linewidth=1, color=COLOR, alpha=0.8, markeredgewidth=0)
    axes.set(xscale="log" if counts[0] > 0 else "symlog", yscale="log", xlabel=x_label, ylabel=y_label)


def _draw_concentration(axes: Any, curve: Sequence[tuple[float, float]]) -> None:
    shares, held = zip(*((0.0, 0.0), *curve), strict=True)
    axes.plot(shares, held, color=COLOR, linewidth=1.8)
    axes.fill_between(shares, held, color=COLOR, alpha=0.12, linewidth=0)
    axes.plot([0, 1], [0, 1], "--", color="#8a979d", linewidth=0.9)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share of items, most popular first", ylabel="share of interactions")


def _draw_days(axes: Any, days: Sequence[tuple[int, int]], cuts_s: Sequence[int]) -> None:
    starts = [datetime.fromtimestamp(start_s, UTC) for start_s, _ in days]
    counts = [count for _, count in days]
    stretch_days = (days[1][0] - days[0][0]) / DAY_S if len(days) > 1 else 1
    axes.bar(starts, counts, width=stretch_days, align="edge", color=COLOR, linewidth=0)
    for cut_s in cuts_s:
        axes.axvline(datetime.fromtimestamp(cut_s, UTC), linestyle="--", color="#b4502d", linewidth=1)
    axes.set(ylabel="interactions")
    axes.tick_params(axis="x", labelrotation=30)


def _spread_table(description: Description) -> str:
    names = [f"{float(q):.0%}" for q in description.activity.quantiles]
    spreads = {
        "interactions per user": description.activity,
        "training interactions per item": description.popularity,
    }
    rows = [
        (name, f"{spread.mean:,.1f}", *(f"{v:,}" for v in spread.quantiles.values()), f"{spread.gini:.3f}")
        for name, spread in spreads.items()
    ]
    return table(("", "mean", *names, "Gini"), rows)


def _drops_table(description: Description) -> str:
    total = max(1, description.rows_in)
    entries = {"read": description.rows_in, "kept": description.rows_kept}
    entries |= {f"dropped: {_words(reason)}": count for reason, count in description.rows_dropped.items()}
    return table(("", "rows", "share"), [(name, f"{n:,}", f"{n / total:.2%}") for name, n in entries.items()])


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(key))}: {_value(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) and abs(value) < 100_000_000 else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _day(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d}"
