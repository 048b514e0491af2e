"""What was found in a manifest as an HTML page that needs nothing else: counts, findings, and pictures of the worst."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.heat import envelope
from edgefuse.runtime.media import Pcm, Pixels, decode_audio, decode_image, read_media

if TYPE_CHECKING:
    from edgefuse.train.data_check import Files, Finding

TEMPLATE = "data_check.html"
SHEET = 24  # pictures, and as many sounds, that are shown
LISTED = 500  # findings in the table; --json has all of them
SIDE = 112  # pixels of a thumbnail
INK, PAPER = (0, 112, 180), (236, 239, 243)  # RGB
NOT_DRAWN = "cannot be drawn"


def page(manifest: Path, result: Mapping[str, Any], findings: Sequence[Finding], files: Files) -> bytes:
    """The page; every name and text of the data is escaped.

    Args:
        manifest: what was checked.
        result: the counts of `data_check.check`.
        findings: what is wrong, or may be.
        files: the facts of every file.
    """
    sections = [
        _section("Splits", _table(["split", *_columns(result["splits"])], _cells(result["splits"]))),
        _section("Labels", _bars(result["labels"])),
        _section("Lines by sensors", _table(["sensors", "lines"], [[k, str(n)] for k, n in result["sensors"].items()])),
        *(_section(k.title(), _facts(v)) for k in ("pictures", "sounds", "texts") if any((v := result[k]).values())),
        _section("Findings", _findings(findings, manifest.parent), wide=True),
        *(
            _section(title, _sheet(sensor, findings, files, manifest.parent), wide=True)
            for sensor, title in (("image", "The worst pictures"), ("audio", "The worst sounds"))
            if any(kind == sensor for kind, _ in files)
        ),
    ]
    found = ", ".join(f"{what} ({count})" for what, count in result["found"].items()) or "nothing"
    template = resources.files("edgefuse.train").joinpath(TEMPLATE).read_text(encoding="utf-8")
    about = f"{result['lines']} lines; found: {found}"
    return (
        Template(template)
        .substitute(
            name=escape(str(manifest)),
            verdict=escape(result["verdict"]),
            about=escape(about),
            sections="\n".join(sections),
        )
        .encode()
    )


def worst(sensor: str, findings: Sequence[Finding], files: Files) -> list[tuple[str, str]]:
    """Paths and what is said of them: those with findings first, then the flattest pictures or the quietest sounds."""
    said = {finding.path: finding.what for finding in reversed(findings) if finding.sensor == sensor and finding.path}
    rest = [
        (facts.contrast if sensor == "image" else facts.level_db, path)
        for (kind, path), facts in files.items()
        if kind == sensor and not facts.problem and path not in said
    ]
    told = "contrast {:.1f}" if sensor == "image" else "{:.0f} dB"
    return [*reversed(said.items()), *((path, told.format(value)) for value, path in sorted(rest))][:SHEET]


def thumbnail(sensor: str, path: str) -> bytes | None:
    """A file as a small PNG, a sound as its waveform; None where it cannot be read."""
    try:
        data = read_media(path)
        small = _fit(decode_image(data, path)) if sensor == "image" else _wave(decode_audio(data, path)[0])
    except MediaError:
        return None
    return bytes(cv2.imencode(".png", small[:, :, ::-1])[1])


def _fit(pixels: Pixels) -> Pixels:
    scale = SIDE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=way), np.uint8)


def _wave(pcm: Pcm) -> Pixels:
    """Full scale from top to bottom, so that what is quiet looks quiet and what is clipped is cut off."""
    drawn = np.full((SIDE // 2, SIDE, 3), PAPER, np.uint8)
    middle = (SIDE // 2 - 1) / 2
    for x, (low, high) in enumerate(envelope(pcm, SIDE)):
        drawn[round(middle * (1 - high)) : round(middle * (1 - low)) + 1, x] = INK
    return drawn


def _sheet(sensor: str, findings: Sequence[Finding], files: Files, root: Path) -> str:
    figures = []
    for path, said in worst(sensor, findings, files):
        png = thumbnail(sensor, path)
        caption = f"<figcaption>{escape(said)}<br><small>{escape(_below(root, path))}</small></figcaption>"
        if png is None:
            figures.append(f'<figure><div class="gone">{NOT_DRAWN}</div>{caption}</figure>')
        else:
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            figures.append(f'<figure><img alt="{escape(said)}" src="{source}">{caption}</figure>')
    return f'<div class="sheet">{"".join(figures)}</div>'


def _findings(findings: Sequence[Finding], root: Path) -> str:
    if not findings:
        return "<p>Nothing.</p>"
    rows = [
        [f.what, f.where.rpartition(":")[2], f.detail, str(f.lines), _below(root, f.path) if f.path else ""]
        for f in findings[:LISTED]
    ]
    more = len(findings) - LISTED
    note = f"<p>{more} more; edgefuse data check --json has all of them.</p>" if more > 0 else ""
    return _table(["finding", "first line", "detail", "lines", "file"], rows) + note


def _below(root: Path, path: str) -> str:
    """A path as the manifest says it."""
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


def _bars(labels: Mapping[str, Mapping[str, int]]) -> str:
    """A row per label: the lines of each split, and a bar of all of them."""
    totals = {label: sum(counts.values()) for label, counts in labels.items()}
    most = max(totals.values(), default=1)
    splits = _columns(labels)
    rows = "".join(
        f"<tr><th>{escape(label)}</th>"
        + "".join(f"<td>{counts[split]}</td>" for split in splits)
        + f'<td class="bar"><i style="width:{100 * totals[label] / most:.1f}%"></i></td></tr>'
        for label, counts in labels.items()
    )
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in ('label', *splits))}<td></td></tr>{rows}</table>"


def _facts(facts: Mapping[str, Any]) -> str:
    """Plain values as lines; of a mapping its first few entries."""
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key}: {_plain(inner)}" for key, inner in list(value.items())[:8]) or "none"
        rows.append([name, _plain(value)])
    return _table(["", ""], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table>{f"<tr>{top}</tr>" if any(head) else ""}{body}</table></div>'


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(next(iter(rows.values()), {}))


def _cells(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [[name, *(_plain(value) for value in row.values())] for name, row in rows.items()]


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _section(title: str, inside: str, *, wide: bool = False) -> str:
    attribute = ' class="wide"' if wide else ""
    return f"<section{attribute}><h2>{escape(title)}</h2>{inside}</section>"
