"""The skeleton of a self-contained HTML page; it refers to no other file and needs no network.

A page with plots needs matplotlib (the extra `report`), which is imported for the first of them.
"""

import html
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray_recsys.errors import InputError
from ray_recsys.storage.files import write_bytes
from ray_recsys.storage.location import Location, LocationLike

COLOR, _GRID = "#2f6f8f", "#d8dee2"
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


Draw = Callable[[Any], None]
Plot = Callable[[Draw], str]


def write_page(path: LocationLike, title: str, body: Callable[[Plot], Sequence[str]]) -> None:
    """Writes a page; an existing file is replaced once the new one is complete.

    Args:
        path: The file.
        title: As plain text.
        body: Returns the page's parts as HTML; gets a function that draws on matplotlib's axes and returns SVG.

    Raises:
        InputError: The page has plots, and matplotlib is not installed.
    """
    parts = body(_plot)
    content = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>" + "\n".join(parts) + "</body></html>\n"
    )
    write_bytes(Location.of(path), content.encode())


def require_matplotlib() -> tuple[Any, Any]:
    """Returns matplotlib and its `figure`; call it before long work.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module("matplotlib"), importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise InputError(f"plots need matplotlib ({error})", remedy="run: pip install 'ray-recsys[report]'") from error


def _plot(draw: Draw) -> str:
    """Returns a plot as SVG."""
    matplotlib, figures = require_matplotlib()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "describe", "font.size": 9.5, "axes.titlesize": 9.5}
    with matplotlib.rc_context(settings):
        return _svg(figures.Figure(figsize=(5.2, 3.0), layout="constrained"), draw)


def _svg(figure: Any, draw: Draw) -> str:
    axes = figure.subplots()
    axes.grid(visible=True, color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def header(title: str, where: str) -> str:
    """Returns the page's heading."""
    return f'<header><h1>{text(title)}</h1><p class="where">{text(where)}</p></header>'


def cards(figures: Mapping[str, str]) -> str:
    """Returns figures by their names, as cards."""
    shown = (
        f'<div class="card"><b>{text(value)}</b><span>{text(name)}</span></div>' for name, value in figures.items()
    )
    return f'<div class="cards">{"".join(shown)}</div>'


def figure(title: str, remark: str, svg: str) -> str:
    """Returns a plot with its caption."""
    return f"<figure><figcaption>{text(title)}<small>{text(remark)}</small></figcaption>{svg}</figure>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, is_text: bool = False) -> str:
    """Returns a table; its first column is left-aligned, or every one with `is_text`."""
    cell = '<td class="text">' if is_text else "<td>"
    head = "".join(f"<th>{text(name)}</th>" for name in header)
    lines = ("<tr>" + "".join(f"{cell}{text(value)}</td>" for value in row) + "</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    return f'<div class="wide"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def text(value: str) -> str:
    """Returns text as HTML."""
    return html.escape(value)
