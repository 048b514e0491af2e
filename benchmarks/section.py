"""A section of the report: what the page and the Markdown both show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells as text, as many in each as in `head`; the first `text_columns` are words, the others figures."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True, slots=True)
class Section:
    """Tables under a title, and what has to be said with them, a sentence each."""

    title: str
    tables: Sequence[Table]
    notes: Sequence[str] = ()  # below the tables
    lead: Sequence[str] = ()  # above them


def not_measured(title: str, why: str) -> Section:
    """A section that says only why there is nothing."""
    return Section(title, [], [f"Not measured: {why}."])
