"""Check a manifest before training on it: `edgefuse data check manifest.jsonl --out page.html`.

Counts what there is, and finds what spoils a training or its measure: files that cannot be read, the same thing in two
splits, sounds that are silent or cut off at full scale, blank pictures, labels that training never sees.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import SPLITS, Example, check_lines
from edgefuse.train.media_facts import READERS, Facts, read_facts

Files = Mapping[tuple[str, str], Facts]  # (sensor, path) -> what it is

NO_LABEL = "(no label)"
BLANK = 2.0  # contrast, in steps of 255, below which a picture shows nothing
SILENT_DB = -60.0  # level below which a sound is as good as silent
CLIPPED = 0.001  # share of samples in flat tops at full scale above which a sound was recorded too loud
UNREADABLE, BAD_LINE = "unreadable file", "unusable line"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be."""

    what: str  # kind of finding
    where: str  # "manifest.jsonl:17", the first line that it concerns
    detail: str
    lines: int = 1  # that it concerns
    sensor: str | None = None  # of the file that it is about
    path: str | None = None


def check(manifest: Path, out: Path | None = None) -> dict[str, Any]:
    """Count and judge the lines of a manifest and the files that they name; each file is read once.

    Args:
        manifest: the .jsonl file.
        out: a page to write, with pictures of the worst.

    Returns:
        Counts and findings; `verdict` is "ok" unless a line or a file cannot be used.

    Raises:
        ManifestError: the manifest itself cannot be read, or has no lines.
    """
    examples: list[Example] = []
    findings: list[Finding] = []
    for line in check_lines(manifest):
        if isinstance(line, ManifestError):
            where, _, detail = str(line).partition(": ")
            findings.append(Finding(BAD_LINE, where, detail))
        else:
            examples.append(line)
    if not examples and not findings:
        raise ManifestError(f"{manifest}: no lines; write one JSON object per line")
    files = read_facts({file: None for example in examples for file in files_of(example)})
    findings += [*judge_files(examples, files), *find_repeats(examples, files), *find_unseen_labels(examples)]
    result = {
        "verdict": "unreadable" if any(f.what in (UNREADABLE, BAD_LINE) for f in findings) else "ok",
        "lines": len(examples),
        **count_lines(examples),
        **count_files(files),
        "texts": count_words(examples),
        "found": dict(Counter(finding.what for finding in findings)),
        "unreadable": [
            {"where": finding.where, "problem": finding.detail}
            for finding in findings
            if finding.what in (UNREADABLE, BAD_LINE)
        ],
        "findings": [asdict(finding) for finding in findings],
    }
    if out is not None:
        from edgefuse.train.data_page import page

        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, page(manifest, result, findings, files))
        result["page"] = str(out)
    return result


def files_of(example: Example) -> Iterator[tuple[str, str]]:
    """The sensors of a line that are files, and their paths."""
    for sensor in example.sensors:
        if sensor != "text":
            yield sensor, getattr(example, sensor)


def count_lines(examples: Sequence[Example]) -> dict[str, Any]:
    """Lines by split, by label and split, and by the sensors that they have."""
    by_split = Counter(example.split for example in examples)
    labels = Counter((example.label or NO_LABEL, example.split) for example in examples)
    names = sorted({label for label, _ in labels})
    splits = [split for split in SPLITS if by_split[split]]
    return {
        "splits": {
            split: {
                "lines": by_split[split],
                "labels": sum(labels[name, split] > 0 for name in names),
                "largest_label": max(labels[name, split] for name in names) / by_split[split],
                "largest_to_smallest": _ratio([labels[name, split] for name in names]),
            }
            for split in splits
        },
        "labels": {name: {split: labels[name, split] for split in splits} for name in names},
        "sensors": dict(Counter("+".join(example.sensors) for example in examples).most_common()),
    }


def count_files(files: Files) -> dict[str, Any]:
    """How many pictures and sounds there are, and of what sizes, rates and lengths."""
    of = {sensor: [f for (kind, _), f in files.items() if kind == sensor and not f.problem] for sensor in READERS}
    sizes = Counter(f"{f.width}x{f.height}" for f in of["image"])
    rates = Counter(f"{f.rate} Hz" for f in of["audio"])
    seconds = [f.seconds for f in of["audio"]]
    return {
        "pictures": {**_distinct(of["image"]), "sizes": dict(sizes.most_common())},
        "sounds": {**_distinct(of["audio"]), "rates": dict(rates.most_common()), "seconds": spread(seconds)},
    }


def count_words(examples: Sequence[Example]) -> dict[str, Any]:
    """How many texts there are, and how long they are in words."""
    texts = [example.text for example in examples if example.text]
    return {"lines": len(texts), "distinct": len(set(texts)), "words": spread([len(text.split()) for text in texts])}


def spread(values: Sequence[float]) -> dict[str, float]:
    """Least, median, 95th percentile and most; nothing of nothing."""
    if not values:
        return {}
    least, median, p95, most = np.quantile(values, [0, 0.5, 0.95, 1]).tolist()
    return {"least": least, "median": median, "p95": p95, "most": most}


def judge_files(examples: Sequence[Example], files: Files) -> list[Finding]:
    """What is wrong with single files, each named once with the first of its lines."""
    users: dict[tuple[str, str], list[Example]] = defaultdict(list)
    for example in examples:
        for file in files_of(example):
            users[file].append(example)
    return [
        Finding(what, lines[0].where, detail, len(lines), *file)
        for file, lines in users.items()
        for what, detail in _faults(files[file], file[0])
    ]


def find_repeats(examples: Sequence[Example], files: Files) -> list[Finding]:
    """What stands in more than one split: a picture or a sound of the same bytes, a picture with the same text."""
    seen: dict[tuple[str, Hashable], dict[str, list[Example]]] = defaultdict(lambda: defaultdict(list))
    for example in examples:
        digests = {sensor: files[sensor, path].digest for sensor, path in files_of(example)}
        keys: list[tuple[str, Hashable]] = [(f"same {sensor}", digest) for sensor, digest in digests.items() if digest]
        if example.text and (digests.get("image") or not digests):
            keys.append(("same text" if not digests else "same image and text", (digests.get("image"), example.text)))
        for key in keys:
            seen[key][example.split].append(example)
    found = []
    for (what, _), by_split in seen.items():
        if len(by_split) > 1:
            first = [lines[0] for lines in by_split.values()]
            detail = ", ".join(f"{split} ({lines[0].where})" for split, lines in by_split.items())
            sensor = what.split()[1]
            lines, path = sum(map(len, by_split.values())), getattr(first[0], sensor) if sensor != "text" else None
            found.append(Finding(f"{what} in two splits", first[0].where, detail, lines, sensor, path))
    return found


def find_unseen_labels(examples: Sequence[Example]) -> list[Finding]:
    """Labels of val and test that no training line has: no model can answer them."""
    trained = {example.label for example in examples if example.split == "train"}
    unseen: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        if example.label is not None and example.label not in trained:
            unseen[example.label].append(example)
    return [
        Finding("label without training lines", lines[0].where, repr(label), len(lines))
        for label, lines in unseen.items()
    ]


def _faults(file: Facts, sensor: str) -> Iterator[tuple[str, str]]:
    if file.problem:
        yield UNREADABLE, file.problem
    elif sensor == "image" and file.contrast < BLANK:
        yield "blank picture", f"contrast {file.contrast:.2f} of 255"
    elif sensor == "audio":
        if file.level_db < SILENT_DB:
            yield "near-silent sound", f"{file.level_db:.0f} dB"
        if file.clipped > CLIPPED:
            yield "clipped sound", f"{100 * file.clipped:.1f} % of the samples cut off at full scale"


def _distinct(facts: Sequence[Facts]) -> dict[str, int]:
    return {"files": len(facts), "distinct": len({f.digest for f in facts})}


def _ratio(counts: Sequence[int]) -> float:
    there = [count for count in counts if count]
    return max(there) / min(there)
