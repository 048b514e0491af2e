"""Add trt and cpu parts to a bundle: `python optimize/quantize.py bundle --precision auto`, as `edgefuse quantize`.

Calibrated on training lines, judged on validation lines against the FP32 parts. Where the trt parts keep less of their
accuracy than the gate asks, nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgefuse.optimize.cost import cost_source
from edgefuse.optimize.cpu_parts import cpu_candidates, median_ms
from edgefuse.optimize.judge import REFERENCE, Candidate, Judge, Settled, Verdict
from edgefuse.optimize.planner import front
from edgefuse.optimize.trt_parts import FP16, TrtPart, encoder_part, head_part
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file, token_tensor
from edgefuse.runtime.errors import BundleError, GateError, ManifestError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

PRECISIONS = ("auto", "fp16", "int8")
WORTH_IT = 1.05  # how many times as fast as FP32 a cpu candidate has to be, to be more than noise


@dataclass(frozen=True, slots=True)
class Made:
    """The candidates of one part."""

    trt: TrtPart
    cpu: list[Candidate]  # FP32 first
    cpu_ms: dict[str, float]  # precision -> median time of one run at batch 1

    def speedup(self, precision: str) -> float:
        """How many times as fast as FP32 a cpu candidate is."""
        return self.cpu_ms[REFERENCE] / self.cpu_ms[precision]

    def candidate(self, precision: str) -> Candidate:
        """The candidate of that name."""
        candidates = (*self.trt.candidates, *self.cpu)
        return next(candidate for candidate in candidates if candidate.precision == precision)


def quantize(
    bundle_folder: str | Path,
    manifest: str | Path | None = None,
    *,
    precision: str = "auto",
    gate: float = 0.99,
    calibration: int = 256,
    validation: int | None = None,
) -> dict[str, Any]:
    """Write parts/trt and parts/cpu of a bundle, and what they keep of the FP32 accuracy.

    Args:
        bundle_folder: a bundle with fp32 parts.
        manifest: data to calibrate (split train) and to judge (split val) on; None takes the one of the training.
        precision: "fp16"; "int8" for INT8 on every encoder wherever TensorRT's rules allow it; "auto" for the blocks
            in INT8 that make the compiled part cheaper and pass the gate.
        gate: least share of the FP32 accuracy to keep, with all sensors and over all subsets of sensors together.
        calibration: training lines to calibrate on.
        validation: lines to judge on, evenly spread; all of the split where None.

    Returns:
        {retention, interval, pooled, parts: {name: {precision, cpu, cpu_note}}, blocks, pareto, by_subset, cpu, bytes}:
        `blocks` says of each block of each part what it is and why, `pareto` what the compiled forms cost and keep.

    Raises:
        GateError: the trt parts keep too little; the bundle is as it was.
        BundleError, ManifestError: the bundle, the manifest or a file that it names cannot be used.
        EngineError: the compiler that tells "auto" the costs refuses a part, or the GPU that is there cannot time it.
    """
    if precision not in PRECISIONS:
        raise BundleError(f"precision {precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    bundle = Bundle.open(bundle_folder)
    manifest = manifest or bundle.info.lineage.get("manifest")
    if manifest is None:
        raise ManifestError(f"{bundle.folder} does not say what it was trained on; give --manifest")
    training = read_manifest(manifest, split="train", limit=calibration)
    judge = Judge(bundle, read_manifest(manifest, split="val", labels=bundle.info.labels, limit=validation))
    made: dict[str, Made] = {}
    with Console(stderr=True).status("") as status:
        for part in (*bundle.info.modalities, HEAD):
            status.update(f"quantizing {part}")
            made[part] = _make(bundle, part, training, precision)
            judge.add(part, [*made[part].trt.candidates, *made[part].cpu])
        status.update("judging on the validation lines")
        trt = _settle_trt(judge, made, precision, gate)
        cpu = _settle_cpu(judge, made, gate)
    if trt.verdict.kept < gate:
        raise GateError(_missed(bundle, trt.verdict, precision, gate))
    asked = {"precision": precision, "gate": gate, "calibration": len(training), "manifest": str(manifest)}
    return _write(bundle, made, trt, cpu, asked)


def _make(bundle: Bundle, part: str, training: Sequence[Example], precision: str) -> Made:
    """The first candidates of one part, the cpu ones timed."""
    model = bundle.part(REFERENCE, part)
    if part == HEAD:
        tokens = {token_tensor(m): (1, spec.count, spec.dim) for m, spec in bundle.info.tokens.items()}
        shapes = {**tokens, "presence": (1, len(bundle.info.modalities))}
        inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
        trt, cpu = head_part(model), cpu_candidates(model)
    else:
        samples = Samples(Preprocessor(bundle), training, part)
        _, cost_of = cost_source()
        trt, cpu = encoder_part(model, samples, precision, cost_of), cpu_candidates(model)
        inputs = next(samples.batches(1))
    return Made(trt, cpu, median_ms(cpu, inputs))


def _settle_trt(judge: Judge, made: Mapping[str, Made], precision: str, gate: float) -> Settled:
    """FP16 everywhere, and INT8 as `precision` says; a part that misses the gate alone gives blocks back."""
    fp16 = dict.fromkeys(made, FP16)
    int8 = {part: forms.trt.candidates[1].precision for part, forms in made.items() if len(forms.trt.candidates) > 1}
    if precision != "auto":
        return judge.settle({**fp16, **int8}, {}, gate)
    wishes: dict[str, list[str]] = {}
    for part, name in int8.items():
        wishes[part] = [name]
        while judge.verdict({**fp16, part: wishes[part][-1]}).kept < gate:
            less = made[part].trt.retreat()
            if less is None:
                break
            judge.add(part, [less])
            wishes[part].append(less.precision)
    return judge.settle(fp16, wishes, gate)


def _settle_cpu(judge: Judge, made: Mapping[str, Made], gate: float) -> Settled:
    """Of each part the fastest form that passes the gate."""
    wishes = {
        part: sorted((p for p in forms.cpu_ms if forms.speedup(p) >= WORTH_IT), key=forms.cpu_ms.__getitem__)
        for part, forms in made.items()
    }
    return judge.settle(dict.fromkeys(made, REFERENCE), wishes, gate)


def _missed(bundle: Bundle, verdict: Verdict, precision: str, gate: float) -> str:
    low, high = verdict.interval
    other = "use --precision auto or lower --gate" if precision == "int8" else "train longer or lower --gate"
    return (
        f"{precision} parts keep {verdict.retention:.2%} of the fp32 accuracy with all sensors (interval {low:.2%} "
        f"to {high:.2%}) and {verdict.pooled:.2%} over all subsets, the gate asks {gate:.2%}; {other}; "
        f"{bundle.folder} is as it was"
    )


def _write(
    bundle: Bundle, made: Mapping[str, Made], trt: Settled, cpu: Settled, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """Commit both part sets and the contract in one step; returns the result of the verb."""
    files: dict[str, bytes] = {}
    parts: dict[str, dict[str, PartInfo]] = {REFERENCE: bundle.info.parts[REFERENCE]}
    for part_set, settled in (("trt", trt), ("cpu", cpu)):
        parts[part_set] = {}
        for part, precision in settled.choice.items():
            file = part_file(part_set, part)
            files[file] = made[part].candidate(precision).model
            note = made[part].trt.note(precision) if part_set == "trt" else _cpu_note(made[part], precision)
            parts[part_set][part] = PartInfo(file=file, precision=_precision(precision), note=note)
    judged = {name: _told(settled.verdict) for name, settled in (("trt", trt), ("cpu", cpu))}
    plan = {"cost": cost_source()[0] if asked["precision"] == "auto" else "not asked for", **_plan(made, trt)}
    versions = {name: version(name) for name in ("edgefuse", "onnx", "onnxruntime")}
    updated = bundle.updated(
        files,
        parts=parts,
        lineage={**bundle.info.lineage, "quantize": {**asked, "versions": versions}},
        quality={**bundle.info.quality, **judged, "plan": plan},
    )
    rows = {
        part: {
            "precision": parts["trt"][part].precision,
            "cpu": cpu.choice[part],
            "cpu_note": parts["cpu"][part].note,
        }
        for part in made
    }
    sizes = {part_set: updated.size(part_set) for part_set in parts}
    return {**judged["trt"], "parts": rows, **plan, "cpu": judged["cpu"], "bytes": sizes}


def _told(verdict: Verdict) -> dict[str, Any]:
    return {
        "retention": verdict.retention,
        "interval": list(verdict.interval),
        "pooled": verdict.pooled,
        "by_subset": verdict.by_subset,
    }


def _precision(name: str) -> str:
    """The precision of a candidate: forms that gave blocks back are numbered."""
    return name.split("/")[0]


def _plan(made: Mapping[str, Made], trt: Settled) -> dict[str, Any]:
    """What each block is and why, and what the forms of each part cost and keep, the cheapest first.

    Of the forms that were compiled, those that touch no less memory than a cheaper one are left out, but never the
    chosen one, all FP16, or one whose accuracy was measured.
    """
    blocks = [{"part": part, **row} for part, forms in made.items() for row in forms.trt.reasons(trt.choice[part])]
    rows = []
    for part, forms in made.items():
        kept = {forms.trt.blocks(name): share for (of, name), share in trt.alone.items() if of == part}
        chosen = forms.trt.blocks(trt.choice[part])
        compiled = forms.trt.forms.made.values() if forms.trt.forms else ()
        for form in front(compiled, {chosen, frozenset(), *kept}):
            size = form.cost.bytes_touched
            rows.append(
                {
                    "part": part,
                    "form": _form_name(form.int8, chosen),
                    "kernels": form.cost.kernels,
                    "megabytes": None if size is None else size / 1e6,
                    "cost_us": form.cost.us,
                    "kept": kept.get(form.int8),
                }
            )
    return {"blocks": blocks, "pareto": rows}


def _form_name(int8: frozenset[str], chosen: frozenset[str]) -> str:
    """A form by what sets it apart from the chosen one."""
    if int8 == chosen:
        return "chosen" if int8 else "chosen: all FP16"
    changes = [f"+ {block}" for block in sorted(int8 - chosen)] + [f"- {block}" for block in sorted(chosen - int8)]
    return ", ".join(changes) if int8 else "all FP16"


def _cpu_note(made: Made, precision: str) -> str:
    if precision == REFERENCE:
        return "no other form was faster and accurate enough"
    return f"{made.speedup(precision):.2f}x the speed of fp32 at batch 1 on the machine that quantized it"


if __name__ == "__main__":
    from edgefuse.runtime.cli import main

    main(["quantize", *sys.argv[1:]])
