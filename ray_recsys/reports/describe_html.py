"""A description as one self-contained HTML page with plots; it refers to no other file and needs no network.

Needs matplotlib (the extra `report`), which is imported when a page is written.
"""

import html
import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

from ray_recsys.core.files import atomic_file
from ray_recsys.core.inspecting.describe import DAY_S, Description, Spread
from ray_recsys.errors import InputError

_COLOR, _GRID = "#2f6f8f", "#d8dee2"
_STYLE = """
:root { color-scheme: light; --ink: #1d2a30; --soft: #5b6b73; --line: #d8dee2; --accent: #2f6f8f; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 2rem 1.25rem 4rem; color: var(--ink); background: #fbfcfc;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .75rem; }
p.where { margin: .25rem 0 0; color: var(--soft); overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem;
         margin-top: 1.5rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .85rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; }
figcaption { font-weight: 600; } figcaption small { display: block; font-weight: 400; color: var(--soft); }
svg { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; background: #fff; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .9rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: .25rem; } th { color: var(--soft); font-weight: 500; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
"""


def write_html(description: Description, path: Path) -> None:
    """Writes the page; an existing file is replaced once the new one is complete.

    Raises:
        InputError: Matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise InputError(f"plots need matplotlib ({error})", remedy="run: pip install 'ray-recsys[report]'") from error
    settings = {"svg.fonttype": "none", "svg.hashsalt": "describe", "font.size": 9.5, "axes.titlesize": 9.5}
    with matplotlib.rc_context(settings):
        page = _page(description, lambda draw: _svg(figures.Figure, draw))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as unfinished:
        unfinished.write_text(page, encoding="utf8")


Draw = Callable[[Any], None]


def _svg(figure_class: Any, draw: Draw) -> str:
    figure = figure_class(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _page(description: Description, plot: Callable[[Draw], str]) -> str:
    body = [
        "<header><h1>Prepared set</h1>",
        f'<p class="where">{_text(description.data)} · created {_text(description.created_at)}</p></header>',
        _cards(description),
        '<h2>Shape</h2><div class="grid">',
        *_figures(description, plot),
        "</div><h2>Activity and popularity</h2>",
        _spread_table(description),
        "<h2>Rows of the log</h2>",
        _drops_table(description),
        "<h2>Split</h2>",
        _table(("", ""), [(_words(key), _value(value)) for key, value in description.split.items()], text=True),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Prepared set: {_text(Path(description.data).name)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(body)
        + "</body></html>\n"
    )


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
    cards = (f'<div class="card"><b>{value}</b><span>{name}</span></div>' for name, value in figures.items())
    return f'<div class="cards">{"".join(cards)}</div>'


def _figures(description: Description, plot: Callable[[Draw], str]) -> Iterable[str]:
    yield _figure(
        "How active users are",
        f"users by their number of interactions; median {description.activity.quantiles['0.5']:,}",
        plot(lambda axes: _draw_spread(axes, description.activity, "at least this many interactions", "users")),
    )
    yield _figure(
        "How popular items are",
        f"items by their training interactions; median {description.popularity.quantiles['0.5']:,}",
        plot(
            lambda axes: _draw_spread(axes, description.popularity, "at least this many training interactions", "items")
        ),
    )
    yield _figure(
        "How concentrated popularity is",
        f"share of the interactions that belong to the most popular items; Gini {description.popularity.gini:.3f}",
        plot(lambda axes: _draw_concentration(axes, description.popularity_curve)),
    )
    time = description.time
    if time is not None:
        cuts = {key: value for key, value in description.split.items() if key.endswith("_from_s") and value is not None}
        yield _figure(
            "When interactions took place",
            "interactions per day, or per group of days" + ("; dashed: cuts of the split" if cuts else ""),
            plot(lambda axes: _draw_days(axes, time.interactions_per_day, list(cuts.values()))),
        )


def _draw_spread(axes: Any, spread: Spread, x_label: str, y_label: str) -> None:
    """Draws how many have at least a given count: exact whatever the bins, and straight for a power law."""
    counts, frequencies = zip(*spread.histogram, strict=True)
    at_least = list(accumulate(reversed(frequencies)))[::-1]
    axes.plot(counts, at_least, "o-", markersize=2.5, linewidth=1, color=_COLOR, alpha=0.8, markeredgewidth=0)
    axes.set(xscale="log" if counts[0] > 0 else "symlog", yscale="log", xlabel=x_label, ylabel=y_label)


def _draw_concentration(axes: Any, curve: Sequence[tuple[float, float]]) -> None:
    shares, held = zip(*((0.0, 0.0), *curve), strict=True)
    axes.plot(shares, held, color=_COLOR, linewidth=1.8)
    axes.fill_between(shares, held, color=_COLOR, alpha=0.12, linewidth=0)
    axes.plot([0, 1], [0, 1], "--", color="#8a979d", linewidth=0.9)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="share of items, most popular first", ylabel="share of interactions")


def _draw_days(axes: Any, days: Sequence[tuple[int, int]], cuts_s: Sequence[int]) -> None:
    starts = [datetime.fromtimestamp(start_s, UTC) for start_s, _ in days]
    counts = [count for _, count in days]
    stretch_days = (days[1][0] - days[0][0]) / DAY_S if len(days) > 1 else 1
    axes.bar(starts, counts, width=stretch_days, align="edge", color=_COLOR, linewidth=0)
    for cut_s in cuts_s:
        axes.axvline(datetime.fromtimestamp(cut_s, UTC), linestyle="--", color="#b4502d", linewidth=1)
    axes.set(ylabel="interactions")
    axes.tick_params(axis="x", labelrotation=30)


def _figure(title: str, remark: str, svg: str) -> str:
    return f"<figure><figcaption>{_text(title)}<small>{_text(remark)}</small></figcaption>{svg}</figure>"


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
    return _table(("", "mean", *names, "Gini"), rows)


def _drops_table(description: Description) -> str:
    total = max(1, description.rows_in)
    entries = {"read": description.rows_in, "kept": description.rows_kept}
    entries |= {f"dropped: {_words(reason)}": count for reason, count in description.rows_dropped.items()}
    return _table(("", "rows", "share"), [(name, f"{n:,}", f"{n / total:.2%}") for name, n in entries.items()])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text: bool = False) -> str:
    cell = '<td class="text">' if text else "<td>"
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    lines = ("<tr>" + "".join(f"{cell}{_text(value)}</td>" for value in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(key))}: {_value(inner)}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) and abs(value) < 100_000_000 else str(value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _day(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%d}"


def _text(value: str) -> str:
    return html.escape(value)
