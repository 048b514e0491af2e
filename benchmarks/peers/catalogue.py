"""Which peers there are: what each runs, in which environment, and who makes its model."""

from __future__ import annotations

from dataclasses import dataclass

OURS = "edgefuse, cpu parts"
EAGER, HUGGING_FACE = "PyTorch eager", "Hugging Face pipeline, PyTorch eager"
OPTIMUM = ("optimum-onnx INT8, dynamic", "optimum-onnx INT8, static")
OPENVINO_INT8 = "OpenVINO INT8 (NNCF)"

# ModelOpt's extra for ONNX without its GPU packages (cupy, onnxruntime-gpu), which a CPU does not need to calibrate.
MODELOPT = (
    "nvidia-modelopt==0.47.*",
    "onnx==1.21.*",
    "onnxruntime==1.24.*",
    "onnxconverter-common==1.16.*",
    "onnxslim>=0.1.76",
    *("onnx-graphsurgeon", "onnxscript", "polygraphy", "cppimport", "lief", "ml_dtypes"),
)
# environment -> (extras of edgefuse, packages). Peers without preprocessing of their own have ours, so edgefuse's few
# base packages are in each of them; what only makes a model is in an environment that is not weighed.
ENVIRONMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "edgefuse": ("cpu", ()),
    "torch": ("", ("torch", "torchvision", "torchaudio==2.11.*", "transformers>=5,<6", "safetensors", "pyyaml")),
    "openvino": ("", ("openvino",)),
    "nncf": ("", ("openvino", "nncf", "onnx")),
    "optimum": ("", ("optimum-onnx[onnxruntime]",)),
    "modelopt": ("", MODELOPT),
    # PyPI's own torch: beside a CPU build, which pip prefers where one is offered, PyPI's torchvision does not load.
    "autogluon": ("", ("autogluon.multimodal", "torch===2.13.0")),
    "ultralytics": ("", ("ultralytics", "onnx", "onnxslim", "onnxruntime")),
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of the table."""

    name: str
    module: str  # peer_*.py here, which opens it
    option: str  # what that is told
    environment: str  # key of ENVIRONMENTS
    maker: tuple[str, ...] = ()  # environment, module and arguments of what makes its model first
    takes: tuple[str, ...] = ("image", "audio", "text")
    needs_run: bool = False  # whether it runs the trained run, not the bundle
    left_out: str = ""  # why it is measured only where --only names it


PEERS = (
    Peer(OURS, "peer_edgefuse", "cpu", "edgefuse"),
    Peer(EAGER, "peer_torch", "eager", "torch", needs_run=True),
    Peer("PyTorch compiled", "peer_torch", "compiled", "torch", needs_run=True),
    Peer(HUGGING_FACE, "peer_torch", "pipeline", "torch", needs_run=True),
    Peer("ONNX Runtime FP32", "peer_onnx", "onnxruntime:whole.onnx", "edgefuse"),
    Peer(
        OPTIMUM[0],
        "peer_onnx",
        "onnxruntime:optimum_dynamic.onnx",
        "optimum",
        ("optimum", "makers", "optimum_dynamic"),
    ),
    Peer(
        OPTIMUM[1], "peer_onnx", "onnxruntime:optimum_static.onnx", "optimum", ("optimum", "makers", "optimum_static")
    ),
    Peer("OpenVINO FP32", "peer_onnx", "openvino:whole.onnx", "openvino"),
    Peer(OPENVINO_INT8, "peer_onnx", "openvino:openvino_int8.xml", "openvino", ("nncf", "makers", "nncf")),
    Peer(
        "ModelOpt INT8, ONNX Runtime",
        "peer_onnx",
        "onnxruntime:modelopt_int8.onnx",
        "edgefuse",
        ("modelopt", "makers", "modelopt"),
    ),
    Peer(
        "Ultralytics YOLO11n-cls",
        "peer_ultralytics",
        "",
        "ultralytics",
        ("ultralytics", "peer_ultralytics"),
        takes=("image",),
        left_out="a training of its own; --only Ultralytics measures it",
    ),
    Peer(
        "AutoGluon MultiModal",
        "peer_autogluon",
        "",
        "autogluon",
        ("autogluon", "peer_autogluon"),
        takes=("image", "text"),
        left_out="several GB to install and a training of its own; --only 'AutoGluon MultiModal' measures it",
    ),
)
