"""Hop by hop from torch to INT8, where numbers drift apart: `python optimize/parity.py bundle`, as `edgefuse parity`.

torch -> fp32 ONNX -> fp16 -> int8, the trt parts with Q/DQ as written -> ort, the same with ONNX Runtime's fusions; and
fp32 -> cpu parts. Every hop is measured part by part on the same inputs, and in what the whole model answers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from edgefuse.optimize.blame import Blame
from edgefuse.optimize.compare import CodeDistance, Difference, agreement
from edgefuse.optimize.ledger import FP16, FP32, INT8, Hop, Ledger
from edgefuse.runtime.backend import Runner
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.evaluate import retention, score
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Floats

WHOLE = "all"  # the row in which every part changes
TOLD = 5  # nodes of each part that are told
NOTES = {
    "fp16_on_a_cpu": "computed in FP32 and rounded between some nodes; what a GPU would meet is under overflow",
    "engine": "not measured: that needs a GPU",
}


def parity(
    bundle: str | Path, *, manifest: str | Path | None = None, run: Path | None = None, limit: int = 256
) -> dict[str, Any]:
    """Where a bundle's parts drift apart from one form to the next.

    Args:
        bundle: folder of a quantized bundle.
        manifest: data, its split val is used; None takes that of the training.
        run: the run that the bundle was exported from, to begin at torch; None begins at the fp32 parts.
        limit: use this many lines at most, evenly spread.

    Returns:
        {hops, answers, codes, nodes, overflow, lost_most, ...}. `hops`: errors at the output of each part, both forms
        given the same inputs, and of the logits where all parts change. `answers`: what the whole model answers when
        only this part changes and when all do. `codes`: INT8 codes of the trt parts against those of exact values.
        `nodes`: those of the trt parts that lost most, their own error, what it alone does to the output of the part,
        and its share of what all of them do there, one by one (see swap.py).
        `overflow`: what FP16 cannot hold. `lost_most`: the hop, the part and the INT8 node, in one sentence.

    Raises:
        BundleError, ManifestError, RecipeError: the bundle lacks parts, the manifest cannot be used, or the run makes
            another model.
    """
    opened = Bundle.open(bundle)
    for part_set in ("trt", "cpu"):
        opened.part_info(part_set, HEAD)  # refuse a missing part set before anything runs
    manifest = manifest or opened.info.lineage.get("manifest")
    if manifest is None:
        raise ManifestError(f"{opened.folder} does not say what it was trained on; give --manifest")
    examples = read_manifest(manifest, split="val", limit=limit)
    usable = [example for example in examples if set(opened.info.modalities).intersection(example.sensors)]
    if not usable:
        raise ManifestError(f"{manifest}: no line of split 'val' has a sensor of the model; give another --manifest")
    ledger = Ledger(opened, usable, _torch_runners(run, opened))
    with Console(stderr=True).status("") as status:
        for part in (*opened.info.modalities, HEAD):
            status.update(f"comparing {part}")
            ledger.add(part)
    labels = opened.info.labels
    truth = np.array([labels.index(e.label) if e.label in labels else -1 for e in usable])  # [n], -1 where unknown
    return {"examples": len(usable), "manifest": str(manifest), **NOTES, **_told(ledger, truth)}


def _torch_runners(run: Path | None, bundle: Bundle) -> dict[str, Runner]:
    if run is None:
        return {}
    from edgefuse.optimize.export import torch_parts  # torch, only where it is asked for

    return torch_parts(run, bundle.info)


def _told(ledger: Ledger, truth: NDArray[np.int64]) -> dict[str, Any]:
    """The tables, and the sentence at their end."""
    hops, answers, losses = [], [], {}
    for hop in ledger.hops:
        before = dict.fromkeys(ledger.parts, hop[0])
        expected = ledger.answers(before)
        for part in (*ledger.parts, WHOLE):
            changed = dict.fromkeys(ledger.parts, hop[1]) if part == WHOLE else {**before, part: hop[1]}
            found = ledger.answers(changed)
            difference = Difference()
            difference.update(expected, found)
            name = {"hop": "->".join(hop), "part": part}
            hops.append({**name, **ledger.errors.get((hop, part), difference).row()})
            lost = {"not_finite": difference.not_finite} if difference.not_finite else {}
            answers.append({**name, "logits_db": difference.sqnr_db, **lost, **_score(expected, found, truth)})
            if part != WHOLE:
                losses[hop, part] = difference
    return {
        "hops": hops,
        "answers": answers,
        "codes": [row for part in ledger.parts if (row := _codes_row(part, ledger.blames[part]))],
        "nodes": [row for part in ledger.parts for row in _node_rows(part, ledger.blames[part])],
        "overflow": [{"part": part, **row} for part in ledger.parts for row in ledger.ranges[part][:TOLD]],
        "lost_most": _headline(losses, ledger.blames),
    }


def _score(expected: Floats, found: Floats, truth: NDArray[np.int64]) -> dict[str, Any]:
    """How often both answer alike, and how right the changed one is where there are labels."""
    told: dict[str, Any] = {"top1": agreement(expected, found)}
    known = truth >= 0
    if known.any():
        was, right = ((logits.argmax(axis=1) == truth)[known] for logits in (expected, found))
        told |= {key: value for key, value in score(right).items() if key != "n"}
        if was.any():
            told["kept"], interval = retention(was, right)
            told["kept_interval"] = list(interval)
    return told


def _codes_row(part: str, found: Blame) -> dict[str, Any]:
    """All codes of a part together, and the tensor whose codes are farthest from where they should be."""
    if not found.codes:
        return {}
    total = CodeDistance()
    for distance in found.codes.values():
        total.include(distance)
    worst = max(
        found.codes, key=lambda name: (found.codes[name].row()["off_by_more"], found.codes[name].row()["off_by_1"])
    )
    return {"part": part, "tensors": len(found.codes), **total.row(), "worst": worst.removeprefix("other/")}


def _node_rows(part: str, found: Blame) -> list[dict[str, Any]]:
    return [
        {
            "part": part,
            "node": culprit.swap.node,
            "op": culprit.swap.op,
            "in": culprit.swap.precision,
            "own_db": culprit.own.sqnr_db,
            "output_db": culprit.alone.sqnr_db,
            "share": round(culprit.share, 4),
            **({"not_finite": culprit.own.not_finite} if culprit.own.not_finite else {}),
        }
        for culprit in found.culprits[:TOLD]
    ]


def _headline(losses: Mapping[tuple[Hop, str], Difference], blames: Mapping[str, Blame]) -> str:
    """The hop and the part whose change alone does most to the logits, and the node behind it."""
    (hop, part), loss = max(losses.items(), key=lambda item: item[1].noise)
    if not loss.noise:
        return "nothing: every form answers exactly alike"
    how = f"{loss.not_finite} values that are not finite" if loss.not_finite else f"an SQNR of {loss.sqnr_db:.1f} dB"
    told = f"{'->'.join(hop)} of {part}, which alone leaves the logits {how}"
    precision = "fp16" if hop == (FP32, FP16) else "int8"
    if hop not in ((FP32, FP16), (FP16, INT8)):
        part = max(blames, key=lambda name: losses[(FP16, INT8), name].noise)
    culprit = next((c for c in blames[part].culprits if c.swap.precision == precision and c.alone.noise), None)
    if culprit is None:
        return told
    return (
        f"{told}; among the {precision} nodes of {part} {culprit.swap.node} ({culprit.swap.op}) lost most, "
        f"{culprit.share:.0%} of the noise at its output"
    )


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["parity", *sys.argv[1:]])
