"""Prints the result of a verb for a person: plain values as lines, rows of values as tables, rows of prose as prose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Rows = Mapping[str, Mapping[str, Any]]  # name of the row -> name of the column -> value
LONGEST_CELL = 400  # characters of a mapping in one cell
PROSE = 24  # characters of a cell behind which a list of rows reads better as sentences than as columns


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print `result`: plain values first, then a table for each mapping or list of mappings."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    lines = Table.grid(padding=(0, 2))
    tables: list[tuple[str, Table]] = []
    for key, value in result.items():
        if rows := _rows(value):
            tables += [(key, _sentences(value))] if _is_prose(value) else _tables(key, rows)
        else:
            lines.add_row(key, _cell(value))
    if lines.row_count:
        console.print(lines)
    for title, table in tables:
        console.print(title, style="bold")
        console.print(table)


def _rows(value: Any) -> Rows:
    """The rows of a table; none where `value` is not made of mappings."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = {str(number): row for number, row in enumerate(value, start=1)}
    is_table = isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values())
    return value if is_table else {}


def _tables(title: str, rows: Rows) -> Iterator[tuple[str, Table]]:
    """Titles and tables: one of plain values; a column of rows becomes one of its own, with the first value of each."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    nested = [column for column in columns if any(_rows(row.get(column)) for row in rows.values())]
    yield title, _table(rows, [column for column in columns if column not in nested])
    for column in nested:
        inner = {
            name: {key: next(iter(cells.values()), None) for key, cells in _rows(row.get(column)).items()}
            for name, row in rows.items()
        }
        yield from _tables(f"{title}, {column}", _upright(inner))


def _is_prose(value: Any) -> bool:
    """Whether `value` is a list of rows of mostly words, which begin with a name and go on with something long."""
    if isinstance(value, Mapping):
        return False
    cells = [cell for row in value for cell in row.values()]
    words = [cell for cell in cells if isinstance(cell, str)]
    named = not any(_is_long(next(iter(row.values()), "")) for row in value)
    return named and 2 * len(words) > len(cells) and any(map(_is_long, words))


def _is_long(cell: Any) -> bool:
    return isinstance(cell, str) and len(cell) > PROSE and " " in cell


def _sentences(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line per row: its names one after the other, then what is said of them behind a colon."""
    table = Table.grid()
    for row in rows:
        cells = [_cell(value) for value in row.values() if value not in (None, "", [], ())]
        names = list(itertools.takewhile(lambda cell: not _is_long(cell), cells))
        table.add_row("  ".join(names) + ": " + "; ".join(cells[len(names) :]))
    return table


def _upright(rows: Rows) -> Rows:
    """Swap rows and columns where there are more columns than rows: a terminal is longer than wide."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    if len(columns) <= len(rows):
        return rows
    return {column: {name: row.get(column) for name, row in rows.items()} for column in columns}


def _table(rows: Rows, columns: Sequence[str]) -> Table:
    table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for name, row in rows.items():
        table.add_row(name, *(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, Mapping):
        told = ", ".join(f"{key} {_cell(inner)}" for key, inner in value.items())
        return told if len(told) <= LONGEST_CELL else "see --json"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_cell(inner) for inner in value)
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
