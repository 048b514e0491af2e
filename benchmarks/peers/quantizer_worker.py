"""One INT8 or FP16 part made by another tool, run in that tool's own environment by quantizers.py.

    python quantizer_worker.py TOOL part.onnx samples.npz out.onnx [option ...]

Prints {seconds, peak_mb, version} as its last line. Imports nothing of edgefuse.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 8


def onnxruntime(part: Path, samples: dict[str, Any], out: Path, options: list[str]) -> str:
    """ONNX Runtime's static quantization as TensorRT can read it: symmetric INT8 on both sides, no int32 biases.

    Options are the operators to quantize, "all" takes those of its registry; "from_log" leaves out what a Log reads.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """Hands out one batch after the other."""

        def __init__(self) -> None:
            self._batches = _batches(samples)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch, None at the end."""
            return next(self._batches, None)

    quantize_static(
        part,
        out,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=None if "all" in options else _operators(options),
        nodes_to_exclude=_before_log(part) if "from_log" in options else [],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )
    return version("onnxruntime")


def modelopt(part: Path, samples: dict[str, Any], out: Path, options: list[str]) -> str:
    """NVIDIA ModelOpt: INT8 with FP16 around it as its documentation says; options as above, its own without any."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(part),
        quantize_mode="int8",
        calibration_data=samples,
        calibration_method="max" if "max" in options else "entropy",
        calibration_eps=["cpu"],
        op_types_to_quantize=_operators(options) or None,
        nodes_to_exclude=_before_log(part) if "from_log" in options else None,
        high_precision_dtype="fp16",
        output_path=str(out),
        log_level="ERROR",
    )
    return version("nvidia-modelopt")


def autocast(part: Path, samples: dict[str, Any], out: Path, options: list[str]) -> str:
    """NVIDIA ModelOpt's AutoCast to FP16; without real samples it fails on uint8 inputs."""
    import onnx
    from modelopt.onnx.autocast import convert_to_mixed_precision

    batch = out.with_suffix(".npz")
    np.savez(batch, **next(_batches(samples)))
    model = convert_to_mixed_precision(
        str(part), keep_io_types=True, calibration_data=str(batch), op_types_to_exclude=["Log"]
    )
    onnx.save(model, out)
    return version("nvidia-modelopt")


# AIMET's own configuration for a backend without zero points: inputs and weights of products, nothing else.
_AIMET = {
    "defaults": {
        "ops": {"is_symmetric": "True"},
        "params": {"is_quantized": "False", "is_symmetric": "True"},
        "strict_symmetric": "False",  # strict ones are written with a zero point of -1
        "unsigned_symmetric": "False",
        "per_channel_quantization": "True",
    },
    "params": {"weight": {"is_quantized": "True", "is_symmetric": "True"}},
    "op_type": {},
    "supergroups": [],
    "model_input": {"is_input_quantized": "True"},  # it knows no other value; switched off below
    "model_output": {},
}


def aimet(part: Path, samples: dict[str, Any], out: Path, options: list[str]) -> str:
    """AIMET: "cle" equalizes before, "tf_enhanced" or "min_max" finds the ranges; the rest are operators."""
    import onnx
    from aimet_onnx import QuantizationSimModel
    from aimet_onnx.cross_layer_equalization import equalize_model

    model = onnx.load(part)
    if "cle" in options:
        equalize_model(model)
    scheme = "tf_enhanced" if "tf_enhanced" in options else "min_max"
    quantized = {"is_input_quantized": "True", "is_symmetric": "True", "params": {"weight": {"is_quantized": "True"}}}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(json.dumps({**_AIMET, "op_type": dict.fromkeys(_operators(options), quantized)}))
        sim = QuantizationSimModel(
            model, param_type="int8", activation_type="int8", quant_scheme=scheme, config_file=str(config)
        )
        for name in samples:
            if name in sim.qc_quantize_op_dict:
                sim.qc_quantize_op_dict[name].enabled = False
        sim.compute_encodings(_batches(samples))
        onnx.save(sim.to_onnx_qdq(force_activation_as="signed", prequantize_constants=True), out)
    return version("aimet-onnx")


TOOLS = {tool.__name__: tool for tool in (onnxruntime, modelopt, autocast, aimet)}


def _operators(options: list[str]) -> list[str]:
    """Those of the options that name an operator: they begin with a capital."""
    return [option for option in options if option[0].isupper()]


def _before_log(part: Path) -> list[str]:
    """The nodes that a Log depends on: the spectrum of a sound, whose quiet bands INT8 rounds away before the Log."""
    import onnx

    nodes = onnx.load(part).graph.node
    wanted = {name for node in nodes if node.op_type == "Log" for name in node.input}
    found = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node.name)
    return found


def _batches(samples: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for start in range(0, len(next(iter(samples.values()))), BATCH):
        yield {name: array[start : start + BATCH] for name, array in samples.items()}


def _peak_mb() -> int:
    """Most memory that this process held; getrusage would count its parent's too, which it was forked from."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024


def main() -> None:
    """Run the tool; its own prints go to stderr."""
    tool, part, samples, out, *options = sys.argv[1:]
    stdout = os.dup(1)
    os.dup2(2, 1)
    started = time.perf_counter()
    found = TOOLS[tool](Path(part), dict(np.load(samples)), Path(out), options)
    told = {"seconds": round(time.perf_counter() - started, 1), "peak_mb": _peak_mb(), "version": found}
    sys.stdout.flush()
    os.dup2(stdout, 1)
    print(json.dumps(told))


if __name__ == "__main__":
    main()
