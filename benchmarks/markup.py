"""Small pieces of HTML: every value is escaped here, so that nothing from a bundle or a manifest becomes markup."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from edgefuse.benchmarks.section import Section

NOT_KNOWN = DASH = "\u2013"
TIMES = "\u00d7"
PERCENT = "\u00a0%"  # stays with its number at the end of a line


def milliseconds(value: float | None) -> str:
    """Three significant digits, without an exponent."""
    return NOT_KNOWN if value is None else _three_digits(value)


def percent(value: float | None) -> str:
    """A fraction as a percentage with two decimals, the sign left to the head of the column."""
    return NOT_KNOWN if value is None else f"{100 * value:.2f}"


def span(interval: Sequence[float] | None) -> str:
    """An interval of fractions, in percent with two decimals."""
    return NOT_KNOWN if interval is None else f"{100 * interval[0]:.2f}{DASH}{100 * interval[1]:.2f}"


def byte_count(value: float | None) -> str:
    """Bytes in the largest unit that leaves a whole digit (1 MB = 10^6 bytes)."""
    if value is None:
        return NOT_KNOWN
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= factor:
            return f"{_three_digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    groups: Sequence[tuple[str, int]] = (),
) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        caption: what stands above it.
        head: a name per column.
        rows: cells, as many as `head`; the first names the row.
        text_columns: how many columns from the left are text; the others are figures, set flush right.
        groups: (name, number of columns) of a row above the head; must cover every column.
    """
    kind = ' class="facts"' if text_columns == len(head) else ""  # only long text may break inside a word
    grouping = "".join(
        f'<th scope="colgroup" colspan="{width}" class="group">{escape(name)}</th>'
        if name
        else f'<td colspan="{width}"></td>'
        for name, width in groups
    )
    heads = "".join(f'<th scope="col"{_numeric(i, text_columns)}>{escape(cell)}</th>' for i, cell in enumerate(head))
    body = "".join(f"<tr>{_row(row, text_columns)}</tr>" for row in rows)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table{kind}>'
        f"<caption>{escape(caption)}</caption><thead>{f'<tr>{grouping}</tr>' if groups else ''}<tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def card(title: str, value: str, detail: str, verdict: str | None = None, *, good: bool | None = None) -> str:
    """One headline figure; the verdict is a word and a sign, never a colour alone."""
    mood, sign = {True: ("good", "✓ "), False: ("bad", "✗ "), None: ("plain", "")}[good]
    line = f'<p class="verdict {mood}">{sign}{escape(verdict)}</p>' if verdict else ""
    return (
        f'<article class="card"><h2>{escape(title)}</h2><p class="value">{escape(value)}</p>'
        f'{line}<p class="detail">{escape(detail)}</p></article>'
    )


def figure(svg: str, note: str) -> str:
    """A drawing and a sentence on what it shows."""
    return f"<figure>{svg}<figcaption>{escape(note)}</figcaption></figure>"


def block(title: str, *parts: str, wide: bool = False) -> str:
    """A section of ready-made HTML under a title; a wide one takes the whole width of the page."""
    return f'<section class="block{" wide" if wide else ""}"><h2>{escape(title)}</h2>{"".join(parts)}</section>'


def section(told: Section | None) -> str:
    """The tables of a section between its sentences; nothing for None."""
    if told is None:
        return ""
    tables = [table(each.caption, each.head, each.rows, text_columns=each.text_columns) for each in told.tables]
    lead, notes = (map(paragraph, lines) for lines in (told.lead, told.notes))
    return block(told.title, *lead, *tables, *notes, wide=True)


def paragraph(text: str) -> str:
    """One escaped paragraph."""
    return f"<p>{escape(text)}</p>"


def commands(rows: Sequence[tuple[str, str]]) -> str:
    """Which command prints which figure, as a list of terms and code."""
    items = "".join(f"<dt>{escape(what)}</dt><dd><code>{escape(command)}</code></dd>" for what, command in rows)
    return f'<dl class="commands">{items}</dl>'


def _three_digits(value: float) -> str:
    decimals = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def _row(row: Sequence[str], text_columns: int) -> str:
    first, *others = row
    cells = "".join(f"<td{_numeric(i, text_columns)}>{escape(cell)}</td>" for i, cell in enumerate(others, start=1))
    return f'<th scope="row">{escape(first)}</th>{cells}'


def _numeric(column: int, text_columns: int) -> str:
    return ' class="number"' if column >= text_columns else ""
