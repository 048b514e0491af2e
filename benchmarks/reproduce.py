"""Which command prints which figure of a report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgefuse.benchmarks import footprint
from edgefuse.benchmarks.gpu import as_before
from edgefuse.benchmarks.named_latencies import loop_command
from edgefuse.benchmarks.parity_ledger import parity_command
from edgefuse.runtime.bundle import HEAD
from edgefuse.runtime.engines import read_sidecar


def commands(report: Mapping[str, Any], folder: Path, out: Path, extra: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(what, command) for every figure of a report on the bundle in `folder`; `extra` are more options of the run."""
    settings = report["settings"]
    manifest, limit = settings["manifest"], settings["accuracy_limit"]
    quick = ["--quick"] if report["quick"] else []
    bench = ["edgefuse", "bench", str(folder), "--out", str(out), "--manifest", manifest, *quick, *extra]
    found = [
        ("sensor to decision; run it first", loop_command(folder, out, "--manifest", manifest)),
        ("everything else; times, energy, LoadGen's figures and those of engines come from it alone", bench),
    ]
    for part_set in report["part_sets"]:
        evaluate = ["edgefuse", "eval", str(folder), manifest, "--part-dir", part_set, "--split", settings["split"]]
        evaluate += ["--limit", str(limit)] if limit else []
        found.append((f"accuracy, {part_set} parts", [*evaluate, "--json"]))
    pareto = ["python", "benchmarks/pareto.py", str(folder), "--manifest", manifest, *quick]
    parity = ["edgefuse", *parity_command(folder, manifest, settings["parity_lines"])]
    found.append(("parity ledger", parity))
    for target in dict.fromkeys(engine["target"] for engine in report["engines"]):
        build = ["edgefuse", "build", str(folder), "--target", target, *as_before(read_sidecar(folder, target, HEAD))]
        found.append((f"plan audit, {target}", [*build, "--explain"]))
    found += [("accuracy with latency", pareto), ("ceilings", ["python", "benchmarks/roofline.py", str(folder)])]
    for part_set in report["memory"]:
        memory = ["python", "-m", footprint.MODULE, str(folder), part_set, json.dumps(report["example"])]
        found.append((f"memory, {part_set} parts", memory))
    found.append(("first answer", ["time", "edgefuse", *footprint.predict_arguments(folder, report["example"])]))
    found.append(("size on disk", ["du", "-ab", f"{folder}/parts"]))
    return [(what, shlex.join(words)) for what, words in found]
