"""Our quantizer and its choices beside ONNX Runtime's, NVIDIA ModelOpt and AIMET: accuracy, plan, size, memory.

    python benchmarks/peers/quantizers.py --install     makes the peers' venvs under build/peers/ first
    python benchmarks/peers/quantizers.py --trained runs/easy_vqa/bundle --reference runs/reference/bundle

Every tool gets the same FP32 part and the same calibration samples, each alone in its process, and what it makes is
judged the same way. The reference model has random weights: it tells kernels, bytes and nearness to FP32; the trained
one tells accuracy on validation lines. A peer that is not installed is left out and named. The result is
benchmarks/results/quantizers.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.peers.quantizer_scores import Exam, compiled, gathered, nearness, tokens_of
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.samples import Samples

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "peers"
RESULT = ROOT / "benchmarks" / "results" / "quantizers.json"
ENCODERS = ("image", "audio", "text")
JUDGED = 32  # samples of the reference model that nearness is measured on, none of them calibrated on
SEQUENCES = ("audio", "text")  # parts whose work is in matrix products
PRODUCTS = ("MatMul", "Gemm")

# What each venv needs beside what is installed here, torch above all; ModelOpt's own extra brings GPU packages.
PACKAGES = {
    "modelopt": (
        "nvidia-modelopt==0.47.0 onnx==1.21.* onnxruntime==1.24.* onnx-graphsurgeon onnxconverter-common onnxslim "
        "polygraphy cppimport mako lief omegaconf antlr4-python3-runtime==4.9.3 pulp nvidia-ml-py ninja"
    ),
    "aimet": "aimet-onnx",
}


@dataclass(frozen=True, slots=True)
class Row:
    """One way to make a part smaller."""

    name: str
    tool: str  # "edgefuse", or a tool of quantizer_worker.py
    options: tuple[str, ...] = ()
    method: str = ""  # edgefuse: which of the files that its run writes; "" lets it choose
    parts: tuple[str, ...] = ENCODERS
    plan: bool = True  # False where the plan is that of the row above, since only numbers differ

    @property
    def environment(self) -> str:
        """Whose venv it runs in."""
        return {"autocast": "modelopt", "onnxruntime": "edgefuse"}.get(self.tool, self.tool)


METHODS = ("max", "mse", "entropy", "percentile-99.9", "percentile-99.99", "percentile-99.999")
ROWS = (
    Row("edgefuse FP16", "edgefuse", method="fp16"),
    *(Row(f"edgefuse INT8 {m}", "edgefuse", method=m, parts=SEQUENCES, plan=m == "max") for m in METHODS),
    Row("edgefuse INT8 mse + SmoothQuant", "edgefuse", ("--smooth",), "mse", SEQUENCES),
    Row("edgefuse INT8 mse + bias correction", "edgefuse", ("--correct-biases",), "mse", SEQUENCES, plan=False),
    Row("edgefuse INT8 as it chooses", "edgefuse", parts=SEQUENCES),
    *(Row(f"edgefuse INT8 all {m}", "edgefuse", ("--convolutions",), m, plan=m == "max") for m in METHODS),
    Row(
        "edgefuse INT8 all max + bias correction", "edgefuse", ("--convolutions", "--correct-biases"), "max", plan=False
    ),
    Row("edgefuse INT8 all as it chooses", "edgefuse", ("--convolutions",)),
    Row("ONNX Runtime S8S8, MatMul + Gemm", "onnxruntime", PRODUCTS, parts=SEQUENCES),
    Row("ONNX Runtime S8S8, all", "onnxruntime", ("all",)),
    Row("ONNX Runtime S8S8, MatMul + Gemm, told of the Log", "onnxruntime", (*PRODUCTS, "from_log"), "", ("audio",)),
    Row("ModelOpt AutoCast FP16", "autocast"),
    Row("ModelOpt INT8 entropy", "modelopt"),
    Row("ModelOpt INT8 max", "modelopt", ("max",), plan=False),
    Row("ModelOpt INT8 entropy, MatMul + Gemm", "modelopt", PRODUCTS, parts=SEQUENCES),
    Row(
        "ModelOpt INT8 max, MatMul + Gemm, told of the Log",
        "modelopt",
        ("max", *PRODUCTS, "from_log"),
        parts=("audio",),
    ),
    Row("AIMET min-max, products", "aimet", ("min_max", "Conv", *PRODUCTS)),
    Row("AIMET TF-enhanced, products", "aimet", ("tf_enhanced", "Conv", *PRODUCTS), plan=False),
    Row("AIMET min-max + CLE", "aimet", ("min_max", "cle", "Conv"), parts=("image",), plan=False),
)


def main() -> None:
    """Install or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="make the peers' venvs and stop")
    parser.add_argument("--trained", type=Path, default=Path("runs/easy_vqa/bundle"))
    parser.add_argument("--reference", type=Path, default=Path("runs/reference/bundle"))
    parser.add_argument("--samples", type=int, default=512, help="training lines to calibrate on")
    parser.add_argument("--lines", type=int, help="validation lines to judge on; all of them by default")
    parser.add_argument("--only", default="", help="rows whose name holds this text")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.install:
        for environment in PACKAGES:
            _install(environment)
        return
    rows = [row for row in ROWS if given.only in row.name]
    missing = {row.environment for row in rows if not _python(row.environment).exists()}
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "date": datetime.date.today().isoformat(),
        "calibration_lines": given.samples,
        "not_installed": sorted(missing),
    }
    rows = [row for row in rows if row.environment not in missing]
    for name, folder in (("trained", given.trained), ("reference", given.reference)):
        document[name] = _compare(name, Bundle.open(folder), rows, given)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    _print(document)


def _install(environment: str) -> None:
    """A venv with the peer's own packages, which falls back on ours for torch, scipy and the like."""
    folder = WORK / environment
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    ours = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (packages / "zz_fallback.pth").write_text(f"{ours}\n")
    alone = ["--no-deps"] if environment == "modelopt" else []
    asked = [str(_python(environment)), "-m", "pip", "install", "-q", *alone, *PACKAGES[environment].split()]
    subprocess.run(asked, check=True)


def _python(environment: str) -> Path:
    return Path(sys.executable) if environment == "edgefuse" else WORK / environment / "bin" / "python"


def _compare(name: str, bundle: Bundle, rows: list[Row], given: argparse.Namespace) -> dict[str, Any]:
    """Row -> part -> what came out; on the trained model also with all parts together."""
    manifest = bundle.info.lineage["manifest"]
    training = read_manifest(manifest, split="train", limit=given.samples)
    validation = read_manifest(manifest, split="val", labels=bundle.info.labels, limit=given.lines)
    exam = Exam(bundle, validation) if name == "trained" else None
    told: dict[str, Any] = {row.name: {} for row in rows}
    tokens: dict[str, dict[str, NDArray[np.float32]]] = {row.name: {} for row in rows}
    for part in ENCODERS:
        folder = WORK / "quantizers" / name / part
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fp32.onnx").write_bytes(bundle.part("fp32", part))
        calibration = gathered(Samples(Preprocessor(bundle), training, part))
        judged = exam.inputs[part] if exam else gathered(Samples(Preprocessor(bundle), validation, part), JUDGED)
        if exam is None and part == "text":
            calibration, judged = _sentences(calibration, given.samples, 0), _sentences(calibration, JUDGED, 1)
        np.savez(folder / "samples.npz", **calibration)  # type: ignore[arg-type]
        reference = exam.reference[part] if exam else tokens_of(bundle.part("fp32", part), part, judged)
        for row in rows:
            if part in row.parts:
                told[row.name][part] = found = _made(row, folder)
                if "failed" not in found:
                    model = Path(found.pop("file")).read_bytes()
                    tokens[row.name][part] = made = tokens_of(model, part, judged)
                    found |= {"mb": round(len(model) / 1e6, 2), **nearness(made, reference)}
                    if exam:
                        found["kept"] = exam.kept({part: made})
                    elif row.plan:
                        found |= compiled(bundle, part, model)
                print(name, part, row.name, json.dumps(found), file=sys.stderr, flush=True)
    if exam:
        for row in rows:
            told[row.name]["all parts"] = {"kept": exam.kept(tokens[row.name])}
    return {"fp32_accuracy": exam.accuracy() if exam else None, "lines": len(validation), "rows": told}


def _sentences(like: Mapping[str, NDArray[Any]], count: int, seed: int) -> dict[str, NDArray[Any]]:
    """Random words of the tokenizer in sentences of random length: its manifest has few different ones."""
    random = np.random.default_rng(seed)
    length = like["input_ids"].shape[1]
    mask = (np.arange(length) < random.integers(3, length + 1, (count, 1))).astype(np.int32)  # [n, L]
    words = random.integers(1, like["input_ids"].max() + 1, mask.shape).astype(np.int32)
    return {"input_ids": words * mask, "attention_mask": mask}


def _made(row: Row, folder: Path) -> dict[str, Any]:
    """Run the row's tool on the part in `folder`: {file, seconds, peak_mb, ...}, or {failed: why}."""
    chosen = row.tool == "edgefuse" and not row.method
    target = folder / "_".join((row.tool, *row.options, *(["chosen"] if chosen else []))).replace("-", "")
    target.mkdir(exist_ok=True)
    out = target / (f"{row.method or 'tuned'}.onnx" if row.tool == "edgefuse" else "made.onnx")
    told = target / "told.json"
    if row.tool != "edgefuse":
        worker = str(Path(__file__).with_name("quantizer_worker.py"))
        command = [worker, row.tool, str(folder / "fp32.onnx"), str(folder / "samples.npz"), str(out), *row.options]
    else:
        module = ["-m", "edgefuse.optimize.tune", str(folder / "fp32.onnx"), str(folder / "samples.npz"), str(target)]
        command = [*module, *row.options, *([] if chosen else ["--method", *METHODS])]
    if row.tool != "edgefuse" or not _fresh(told, folder / "samples.npz"):
        told.unlink(missing_ok=True)
        done = subprocess.run([str(_python(row.environment)), *command], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1][:300]}
        told.write_text(done.stdout.splitlines()[-1])
    found = json.loads(told.read_text())
    notes = found.pop("notes", {})
    return {"file": str(out), **found, **({"note": notes["tuned"]} if chosen else {})}


def _fresh(path: Path, source: Path) -> bool:
    """Whether one run of ours has written `path` for these samples: it serves all methods."""
    return path.exists() and path.stat().st_mtime >= source.stat().st_mtime


def _print(document: Mapping[str, Any]) -> None:
    """The JSON as two tables."""
    print(f"trained model, {document['trained']['lines']} validation lines; kept = share of the FP32 accuracy [95 %]")
    for row, parts in document["trained"]["rows"].items():
        for part, found in parts.items():
            kept = (f"{way} {k['retention']:.2%} [{k['interval'][0]:.2%}, {k['interval'][1]:.2%}]" for way, k in
                    found.get("kept", {}).items())  # fmt: skip
            near = f"{found['sqnr_db']:6.1f} dB" if "sqnr_db" in found else " " * 9
            print(f"{row:44}{part:10}{near}  {found.get('failed') or '  '.join(kept)}")
    print("\nreference model, TensorRT-RTX for SM 86 at batch 1")
    for row, parts in document["reference"]["rows"].items():
        for part, found in parts.items():
            plan = found.get("refused") or f"{found.get('kernels', ''):>5} kernels {found.get('mb_touched', ''):>6} MB"
            near = f"{found['sqnr_db']:6.1f} dB {found['mb']:7.1f} MB" if "sqnr_db" in found else ""
            print(f"{row:44}{part:10}{near} {found.get('failed') or plan}  peak {found.get('peak_mb', '?')} MB")
    for peer in document["not_installed"]:
        print(f"{peer}: not installed; --install makes its venv")


if __name__ == "__main__":
    main()
