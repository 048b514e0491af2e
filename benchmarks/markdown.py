"""Small pieces of Markdown as GitHub reads it: every cell is escaped here, so that a value never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Sequence


def text(value: str) -> str:
    """One line of a value as plain text: no HTML, link, emphasis or end of a cell can come from it."""
    line = " ".join(value.split()).replace("&", "&amp;")
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)  # what could open a tag; "<= 5" stays readable in the source
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> str:
    """A table of plain cells, as many in each row as in `head`; columns behind `text_columns` are set flush right."""
    rule = ["---" if column < text_columns else "--:" for column in range(len(head))]
    lines = [[text(cell) for cell in head], rule, *([text(cell) for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(command: str) -> str:
    """A block of code, fenced by more backticks than are in it."""
    longest = max((len(run) for run in re.findall("`+", command)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{command}\n{fence}\n"
