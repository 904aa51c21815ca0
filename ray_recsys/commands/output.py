"""Output of a command's result: one JSON object, ruled tables on a terminal, or aligned text in a pipe."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; numbers are right-aligned."""

    header: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    title: str = ""


def facts(title: str = "", /, **values: Any) -> Table:
    """Returns a table of names and values, without None values; `_` in a name becomes a space."""
    return Table(("", ""), [(k.replace("_", " "), v) for k, v in values.items() if v is not None], title)


def scalars(values: Mapping[str, object]) -> dict[str, object]:
    """Returns a result's values without its lists and mappings."""
    return {name: value for name, value in values.items() if not isinstance(value, dict | list)}


@contextlib.contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Yields the real stdout; everything else that this process or its children print meanwhile goes to stderr."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        # Under a test runner, sys.stdout is not descriptor 1.
        stream = os.fdopen(os.dup(saved), "w", encoding="utf8") if _is_descriptor_1(sys.stdout) else sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield stream
        if stream is not sys.stdout:
            stream.close()
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _is_descriptor_1(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except OSError:
        return False


def write_tables(tables: Sequence[Table], stream: TextIO) -> None:
    """Writes tables: ruled on a terminal, in aligned columns elsewhere."""
    for number, table in enumerate(tables):
        if number:
            stream.write("\n")
        if stream.isatty():
            _write_rich(table, stream)
        else:
            _write_plain(table, stream)
    stream.flush()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return "" if value is None else str(value)


def _is_right(rows: Sequence[Sequence[Any]], column: int) -> bool:
    values = [row[column] for row in rows if row[column] is not None]
    return bool(values) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _write_plain(table: Table, stream: TextIO) -> None:
    if table.title:
        stream.write(f"{table.title}\n")
    rows = [[_text(value) for value in row] for row in table.rows]
    lines = [list(table.header), *rows] if any(table.header) else rows
    widths = [max(len(line[c]) for line in lines) for c in range(len(table.header))] if lines else []
    right = [_is_right(table.rows, c) for c in range(len(table.header))]
    for line in lines:
        cells = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True)]
        stream.write("  ".join(cells).rstrip() + "\n")


def _write_rich(table: Table, stream: TextIO) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    named = any(table.header)
    ruled = RichTable(title=table.title or None, title_justify="left", show_header=named, box=box.SIMPLE_HEAD)
    for column, name in enumerate(table.header):
        ruled.add_column(name, justify="right" if _is_right(table.rows, column) else "left")
    for row in table.rows:
        ruled.add_row(*[Text(_text(value)) for value in row])
    Console(file=stream).print(ruled)
