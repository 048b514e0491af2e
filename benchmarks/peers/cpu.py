"""The cpu parts against ONNX Runtime and OpenVINO: the same model, threads and inputs, each alone in its process.

    python benchmarks/peers/cpu.py runs/reference/bundle --install     makes OpenVINO's venv under build/ first

A round starts every engine once, one after the other, in an order that turns. An engine's time in a round is the median
of its runs there, and engines are compared round by round, so that a busy machine slows both sides of a ratio. The
peers get the whole model as one graph. The result is benchmarks/results/cpu.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgefuse.benchmarks.peers.cpu_engines import ENCODERS, ENGINES, RUNS, WORK
from edgefuse.benchmarks.peers.whole_model import calibration_tensors, one_graph

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "build" / "peers" / "openvino"
CALIBRATION = 64  # training lines for OpenVINO's INT8
OURS, REFERENCE = "edgefuse cpu parts", "ONNX Runtime FP32"

Told = dict[str, dict[str, Any]]  # engine -> what its process told


def main() -> None:
    """Prepare, race, print a table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="a bundle of all three modalities with fp32 and cpu parts")
    parser.add_argument("--manifest", help="data for inputs and calibration; default: the one of the training")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--realtime", action="store_true", help="timed runs (0.5 s each) before all others; as root")
    parser.add_argument("--install", action="store_true", help="make OpenVINO's venv")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "cpu.json")
    given = parser.parse_args()
    if given.install:
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([_python("OpenVINO"), "-m", "pip", "install", "-q", "openvino", "nncf", "onnx"], check=True)
    results = {name: _race(path, given) for name, path in _prepare(given.bundle, given.manifest).items()}
    _report(results, given)


def _prepare(folder: Path, manifest: str | None) -> dict[str, Path]:
    """The peers' models, and the inputs: one example, its text as it is and as long as can be."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from edgefuse.runtime.bundle import Bundle
    from edgefuse.runtime.manifest import read_manifest

    bundle = Bundle.open(folder)
    if bundle.info.modalities != ENCODERS:
        sys.exit(f"{folder} takes {', '.join(bundle.info.modalities)}; the race is between models of all three sensors")
    examples = read_manifest(manifest or bundle.info.lineage["manifest"], split="train", limit=CALIBRATION)
    stacked = calibration_tensors(bundle, examples)
    WORK.mkdir(parents=True, exist_ok=True)
    np.savez(WORK / "calibration.npz", **stacked)
    onnx.save(one_graph(bundle), WORK / "fp32.onnx")
    quantize_dynamic(
        WORK / "fp32.onnx",
        WORK / "dynamic.onnx",
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )
    subprocess.run([_python("OpenVINO"), "-c", _NNCF, str(WORK)], check=True, stdout=subprocess.DEVNULL)
    return _inputs({name: rows[:1] for name, rows in stacked.items()})


def _inputs(line: dict[str, Any]) -> dict[str, Path]:
    words, length = int(line["attention_mask"].sum()), line["attention_mask"].shape[1]
    full = {**line, "attention_mask": np.ones((1, length), np.int32)}
    full["input_ids"] = np.resize(line["input_ids"][:, :words], (1, length))  # the text over and over
    paths = {}
    for count, tensors in ((words, line), (length, full)):
        paths[f"{count} of {length} words"] = WORK / f"{count}_words.npz"
        np.savez(WORK / f"{count}_words.npz", **tensors)
    return paths


_NNCF = """
import sys, numpy as np, nncf, openvino
folder = sys.argv[1]
data = np.load(f"{folder}/calibration.npz")
model = openvino.Core().read_model(f"{folder}/fp32.onnx")
model.reshape({name: [1, *data[name].shape[1:]] for name in data.files})
lines = [{name: data[name][i : i + 1] for name in data.files} for i in range(len(data["presence"]))]
quantized = nncf.quantize(
    model, nncf.Dataset(lines), subset_size=len(lines), model_type=nncf.ModelType.TRANSFORMER
)
openvino.save_model(quantized, f"{folder}/int8.xml", compress_to_fp16=False)
"""


def _python(engine: str) -> str:
    return str(VENV / "bin" / "python") if engine.startswith("OpenVINO") else sys.executable


def _race(inputs: Path, given: argparse.Namespace) -> list[Told]:
    """Per round, what each engine's process told."""
    names = list(ENGINES)
    rounds = []
    for index in range(given.rounds):
        told: Told = {}
        for name in names[index % len(names) :] + names[: index % len(names)]:
            about = [str(given.bundle), str(inputs), str(given.threads), "realtime" if given.realtime else "shared"]
            command = [_python(name), str(Path(__file__).with_name("cpu_engines.py")), name, *about]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            told[name] = json.loads(done.stdout.splitlines()[-1])
        rounds.append(told)
        times = (f"{name} {told[name]['p50_ms']:.2f}" for name in names)
        print(inputs.stem, f"{index + 1}/{given.rounds}:", ", ".join(times), file=sys.stderr)
    return rounds


def _report(results: dict[str, list[Told]], given: argparse.Namespace) -> None:
    from edgefuse.benchmarks.environment import describe_environment

    environment = describe_environment()
    asked = "import openvino, nncf; print(openvino.__version__, nncf.__version__)"
    found = subprocess.run([_python("OpenVINO"), "-c", asked], check=True, capture_output=True, text=True)
    environment["versions"].update(zip(("openvino", "nncf"), found.stdout.split()[-2:], strict=True))
    about = {"threads": given.threads, "rounds": given.rounds, "runs": RUNS, "realtime": given.realtime}
    document: dict[str, Any] = {"environment": environment, **about, "inputs": {}}
    print(f"{given.threads} threads; medians over {given.rounds} rounds of {RUNS} runs [least, most]")
    for inputs, rounds in results.items():
        print(f"\n{inputs:26}{'p50 ms':>8}{'least':>8}   {'ours / theirs':21}{'logits, cosine with FP32':>24}")
        document["inputs"][inputs] = {name: _row(name, rounds) for name in ENGINES}
        for name, row in document["inputs"][inputs].items():
            low, high = row["ours_over_theirs_range"]
            ratio = f"{row['ours_over_theirs']:.2f} [{low:.2f}, {high:.2f}]"
            print(f"{name:26}{row['p50_ms']:8.2f}{row['least_ms']:8.2f}   {ratio:21}{row['cosine']:24.5f}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _row(name: str, rounds: list[Told]) -> dict[str, Any]:
    """One engine over all rounds."""
    ratios = [told[OURS]["p50_ms"] / told[name]["p50_ms"] for told in rounds]
    logits, expected = (np.array(rounds[0][which]["logits"]) for which in (name, REFERENCE))
    return {
        "p50_ms": statistics.median(told[name]["p50_ms"] for told in rounds),
        "least_ms": min(told[name]["least_ms"] for told in rounds),
        "ours_over_theirs": statistics.median(ratios),
        "ours_over_theirs_range": [min(ratios), max(ratios)],
        "cosine": float(logits @ expected / np.sqrt((logits @ logits) * (expected @ expected))),
    }


if __name__ == "__main__":
    main()
