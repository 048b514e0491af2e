"""Makes a peer's INT8 model of the whole FP32 graph, in the environment of the tool that makes it:

    python -m edgefuse.benchmarks.peers.makers TOOL JOB

Every tool calibrates on the same samples. Dynamic quantization needs none.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import SAMPLES, WHOLE, Job

Samples = dict[str, np.ndarray]


def nncf(job: Job, samples: Samples) -> None:
    """OpenVINO's post-training quantization for transformers, as its documentation says."""
    import nncf
    import openvino

    model = openvino.Core().read_model(job.file(WHOLE))
    count = len(samples["presence"])
    rows = [{name: array[row : row + 1] for name, array in samples.items()} for row in range(count)]
    made = nncf.quantize(model, nncf.Dataset(rows), subset_size=count, model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(made, job.file("openvino_int8.xml"), compress_to_fp16=False)


def optimum_dynamic(job: Job, samples: Samples) -> None:
    """Hugging Face's ORTQuantizer with its setting for AVX512-VNNI; activations are scaled as they come."""
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    _optimum(job, AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True), "optimum_dynamic.onnx")


def optimum_static(job: Job, samples: Samples) -> None:
    """The same with ranges of activations measured on the samples (min-max, its default)."""
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    rows = [{name: array[row] for name, array in samples.items()} for row in range(len(samples["presence"]))]
    _optimum(job, config, "optimum_static.onnx", rows)


def _optimum(job: Job, config: Any, name: str, rows: Any = None) -> None:
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import CalibrationConfig

    with tempfile.TemporaryDirectory(dir=job.made) as folder:
        shutil.copy(job.file(WHOLE), folder)
        quantizer = ORTQuantizer.from_pretrained(folder, file_name=WHOLE)
        ranges = None
        if rows is not None:
            ranges = quantizer.fit(
                dataset=rows,  # it only iterates over a dataset; the names in the settings are for its model card
                calibration_config=CalibrationConfig(
                    dataset_name=SAMPLES,
                    dataset_config_name="",
                    dataset_split="train",
                    dataset_num_samples=len(rows),
                    method=CalibrationMethod.MinMax,
                    moving_average=False,
                    averaging_constant=0.01,
                ),
                onnx_augmented_model_name=Path(folder) / "augmented.onnx",  # else it lands where we were started
                operators_to_quantize=list(config.operators_to_quantize),
            )
        made = quantizer.quantize(save_dir=folder, quantization_config=config, calibration_tensors_range=ranges)
        (Path(made) / f"{Path(WHOLE).stem}_quantized.onnx").replace(job.file(name))


def modelopt(job: Job, samples: Samples) -> None:
    """NVIDIA ModelOpt by entropy; what is not INT8 stays FP32, since CPUs compute no FP16."""
    from modelopt.onnx.quantization import quantize

    with tempfile.TemporaryDirectory(dir=job.made) as folder:
        copy = shutil.copy(job.file(WHOLE), folder)  # it writes over what it is given, which other peers run
        quantize(
            str(copy),
            quantize_mode="int8",
            calibration_data=samples,
            calibration_method="entropy",
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(job.file("modelopt_int8.onnx")),
            log_level="ERROR",
        )


TOOLS = {tool.__name__: tool for tool in (nncf, optimum_dynamic, optimum_static, modelopt)}


def main() -> None:
    """Run one tool."""
    tool, given = sys.argv[1:]
    job = Job(**json.loads(given))
    with np.load(job.file(SAMPLES)) as stored:
        TOOLS[tool](job, {name: stored[name] for name in stored.files})


if __name__ == "__main__":
    main()
