"""The parity ledger in the report: what `edgefuse parity` tells, hop by hop from the fp32 parts on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgefuse.benchmarks.markup import percent
from edgefuse.benchmarks.section import Section, Table, not_measured
from edgefuse.runtime.bundle import Bundle

FITS = "fits"  # as the ledger calls what FP16 holds
TITLE = "Parity ledger: where numbers drift apart"
Figures = Mapping[str, Any]


def parity_command(bundle: Path, manifest: str, limit: int) -> list[str]:
    """The words behind `edgefuse` that print the ledger of so many lines of the split val."""
    return ["parity", str(bundle), "--manifest", manifest, "--limit", str(limit), "--json"]


def measure_parity(bundle: Bundle, manifest: Path, limit: int) -> dict[str, Any]:
    """The ledger, made in a process of its own, since it opens every form of every part.

    Args:
        bundle: an open bundle.
        manifest: its data; lines of split val are used.
        limit: how many of them.

    Returns:
        {examples, hops, answers, overflow, lost_most, engine, fp16_on_a_cpu} of `edgefuse parity --json`, or
        {not_measured: why} where it refuses or fails: it asks for trt and cpu parts, lines of split val, and onnx.
    """
    words = parity_command(bundle.folder, str(manifest), limit)
    done = subprocess.run(
        [sys.executable, "-m", "edgefuse.runtime.cli", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"not_measured": said[-1].removeprefix("edgefuse: ") if said else f"exit code {done.returncode}"}
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        key: found[key] for key in ("examples", "hops", "answers", "overflow", "lost_most", "engine", "fp16_on_a_cpu")
    }


def section(found: Figures) -> Section:
    """Hop by hop: the error at each part's output, and what changing that part alone does to the answers."""
    if "not_measured" in found:
        return not_measured(TITLE, found["not_measured"])
    rows = []
    for hop, answer in zip(found["hops"], found["answers"], strict=True):
        errors = [_decibels(hop, "sqnr_db"), f"{hop['max_abs']:.2g}", f"{hop['cosine']:.6f}"]
        kept = [percent(answer["top1"]), percent(answer.get("kept"))]
        rows.append([hop["hop"], hop["part"], *errors, _decibels(answer, "logits_db"), *kept])
    head = ["Hop", "Part", "SQNR, dB", "Largest error", "Cosine", "Logits, dB", "Same answer, %", "Kept, %"]
    table = Table(f"The same inputs before and after each hop, {found['examples']} lines of split val", head, rows, 2)
    return Section(TITLE, [table], list(_notes(found)), [f"Lost most: {found['lost_most']}."])


def _decibels(row: Figures, key: str) -> str:
    if row.get("not_finite"):
        return f"{row['not_finite']} not finite"
    return "exact" if row[key] is None else f"{row[key]:.1f}"


def _notes(found: Figures) -> Iterator[str]:
    yield (
        'SQNR is of the output of the part itself; "Logits" and what is right of it, of the whole model when only this '
        'part changes, in the rows "all" when every part does. Kept: the accuracy divided by that before the hop.'
    )
    beyond = [row for row in found["overflow"] if row["in"] == "fp16" and row["effect"] != FITS]
    for row in beyond:
        reached = f"{row['node']} ({row['op']}) reaches {row['largest']:.3g}"
        yield f"FP16, {row['part']}: {reached}; beside FP16's largest number: {row['effect']}."
    if not beyond:
        yield "FP16 holds every value and constant that was seen of the nodes that run in it."
    yield f"fp16 on a CPU: {found['fp16_on_a_cpu']}. Engines: {found['engine']}."
