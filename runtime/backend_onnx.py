"""The ONNX Runtime backend: runs any part set of a bundle on the CPU."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import BundleError, MissingExtraError

DISABLE_FUSED_INT8 = "session.disable_quant_qdq"  # keeps Q/DQ as written: the reference for what TensorRT computes
SPIN_US = 100  # longer than most gaps between two operators of one run


def open_session(model: bytes, *, threads: int = 0, exact_qdq: bool = False) -> Any:
    """An ONNX Runtime CPU session for `model`.

    Args:
        model: a serialized ONNX graph.
        threads: threads inside one operator; 0 lets ONNX Runtime take every core.
        exact_qdq: compute Q/DQ as written instead of fusing them into ONNX Runtime's own INT8 kernels.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        BundleError: ONNX Runtime refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("this needs ONNX Runtime: pip install 'edgefuse[cpu]'") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for key, value in _waiting(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    if exact_qdq:
        options.add_session_config_entry(DISABLE_FUSED_INT8, "1")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise BundleError(f"ONNX Runtime {onnxruntime.__version__} refuses the graph: {error}") from None
    session._model_bytes = None  # the wrapper would hold the file beside the weights, to open it again elsewhere
    return session


def _waiting(version: str) -> dict[str, str]:
    """How workers wait for the next operator.

    By default they spin on after a run, 39 ms of a core here, which camera and microphone threads would need. Asleep,
    they wake too late for operators of 50 us. ONNX Runtime 1.26 and later can be told how long to spin.
    """
    if tuple(int(number) for number in version.split(".")[:2]) < (1, 26):
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": str(SPIN_US)}


def run_session(session: Any, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Every output of a session by its name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


class OnnxBackend:
    """Runs a part set on ONNX Runtime; a part is loaded when it is first needed, so a missing sensor costs nothing.

    Args:
        bundle: an open bundle.
        part_set: "fp32", "trt" or "cpu"; the trt parts run with their Q/DQ exactly as written. None takes cpu where
            the bundle has it, else fp32.
        threads: threads inside one operator; 0 takes every core.
    """

    def __init__(self, bundle: Bundle, part_set: str | None = None, threads: int = 0) -> None:
        self.part_set = part_set or ("cpu" if "cpu" in bundle.info.parts else "fp32")
        self.name = f"onnxruntime:{self.part_set}"
        self._bundle = bundle
        self._threads = threads
        self._sessions: dict[str, Any] = {}
        bundle.part_info(self.part_set, HEAD)  # refuse a missing part set now, not at the first frame

    def load(self, part: str) -> None:
        """Open the session of `part`; does nothing where it is open.

        Raises:
            BundleError: the part is missing or altered, or ONNX Runtime refuses it.
        """
        if part not in self._sessions:
            model = self._bundle.part(self.part_set, part)
            self._sessions[part] = open_session(model, threads=self._threads, exact_qdq=self.part_set == "trt")

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` on named tensors, batch first; returns its outputs as float32.

        Raises:
            BundleError: as `load`, or the part does not take these tensors, so part and contract differ.
        """
        self.load(part)
        try:
            return run_session(self._sessions[part], inputs)
        except Exception as error:  # onnxruntime's own errors share no base class
            raise BundleError(
                f"{self._bundle.folder}: {part} of {self.part_set} does not run as the contract says ({error}); "
                "export the bundle again"
            ) from None

    def close(self) -> None:
        """Free the sessions."""
        self._sessions.clear()

    def __enter__(self) -> OnnxBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
