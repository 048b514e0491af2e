"""The ONNX Runtime backend: runs any part set of a bundle, on the CPU unless told otherwise."""

from __future__ import annotations

import os
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.errors import BackendError, BundleError, MissingExtraError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.pipeline_onnx import OnnxPipeline
from edgefuse.runtime.providers import CPU, PROVIDERS, Chain, chain, part_set_for

DISABLE_FUSED_INT8 = "session.disable_quant_qdq"  # keeps Q/DQ as written: the reference for what TensorRT computes
ROWS = 8  # of a batch that are run at once: few, as they share the scales of dynamic INT8, and not by the machine
SPIN_US = 100  # longer than most gaps between two operators of one run


def open_session(model: bytes, *, threads: int = 0, exact_qdq: bool = False, providers: Chain | None = None) -> Any:
    """An ONNX Runtime session for `model`.

    Args:
        model: a serialized ONNX graph.
        threads: threads inside one operator; 0 lets ONNX Runtime take every core.
        exact_qdq: compute Q/DQ as written instead of fusing them into ONNX Runtime's own INT8 kernels.
        providers: what to run it on; None is the CPU.

    Raises:
        MissingExtraError: onnxruntime is not installed, or this build of it lacks the provider.
        BackendError: the provider does not start on this machine.
        BundleError: ONNX Runtime refuses the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("this needs ONNX Runtime: pip install 'edgefuse[cpu]'") from None
    providers = providers or [(CPU, {})]
    wanted = providers[0][0]
    _check_provider(wanted, onnxruntime.__version__, onnxruntime.get_available_providers())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    for key, value in _waiting(onnxruntime.__version__).items():
        options.add_session_config_entry(key, value)
    if exact_qdq:
        options.add_session_config_entry(DISABLE_FUSED_INT8, "1")
    try:
        session = onnxruntime.InferenceSession(model, options, providers=providers, enable_fallback=False)
    except Exception as error:  # onnxruntime's own errors share no base class
        version = onnxruntime.__version__
        if wanted == CPU:
            raise BundleError(f"ONNX Runtime {version} refuses the graph: {error}") from None
        raise BackendError(f"{wanted} of ONNX Runtime {version} cannot run the part here: {error}") from None
    if session.get_providers()[0] != wanted:  # it would go on with the CPU
        raise BackendError(f"{wanted} does not start here; ONNX Runtime's lines above say which library is missing")
    session._model_bytes = None  # the wrapper would hold the file beside the weights, to open it again elsewhere
    return session


def _waiting(version: str) -> dict[str, str]:
    """How workers wait for the next operator.

    By default they spin on after a run, 39 ms of a core here, which camera and microphone threads would need. Asleep,
    they wake too late for operators of 50 us. ONNX Runtime 1.26 and later can be told how long to spin; a pool that all
    sessions share cannot, and spins on.
    """
    if tuple(int(number) for number in version.split(".")[:2]) < (1, 26):
        return {"session.intra_op.allow_spinning": "0"}
    return {"session.intra_op.spin_duration_us": str(SPIN_US)}


def _check_provider(wanted: str, version: str, available: list[str]) -> None:
    if wanted not in available:
        package = next(row.package for row in PROVIDERS.values() if row.name == wanted)
        raise MissingExtraError(
            f"this ONNX Runtime {version} has no {wanted}, only {', '.join(available)}; "
            f"install {package} in place of onnxruntime"
        )


def loop_threads() -> int:
    """Cores for the parts beside a camera and a microphone: all but one, which is left to them.

    A query waits for its last lane, so one more than there are free cores makes every answer as slow as the sensors are
    busy.
    """
    return max(1, cores() - 1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_session(session: Any, inputs: Tensors) -> dict[str, NDArray[Any]]:
    """Every output of a session by its name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


class OnnxBackend:
    """Runs a part set on ONNX Runtime; a part is loaded when it is first needed, so a missing sensor costs nothing.

    On the CPU the encoders of a query run side by side in lanes, and a batch is dealt out to them, ROWS at a time: so
    small a part gains less from threads inside an operator, which wait for each other at every one.

    Args:
        bundle: an open bundle.
        part_set: "fp32", "trt" or "cpu"; the trt parts run with their Q/DQ exactly as written. None takes what suits
            the provider: on the CPU the cpu parts where there are some, else fp32.
        threads: of all lanes together; 0 takes every core, in a pipeline all but one. They are shared out evenly once
            and for all: what is over stays idle, and a part that runs alone, as the head, has its lane's only.
        provider: what runs them, one of PROVIDERS.
    """

    def __init__(self, bundle: Bundle, part_set: str | None = None, threads: int = 0, provider: str = "cpu") -> None:
        self.part_set = part_set or part_set_for(bundle, provider)
        self.name = f"onnxruntime:{self.part_set}" if provider == "cpu" else f"{provider}:{self.part_set}"
        self._bundle = bundle
        self._threads = threads
        self._provider = provider
        self._sessions: dict[str, Any] = {}
        self._pipelines: list[OnnxPipeline] = []
        for part in bundle.info.parts.get(self.part_set, (HEAD,)):  # refuse them now, not at the first frame
            chain(bundle, provider, self.part_set, part, threads)
        self._share_out(threads or cores())

    def _share_out(self, threads: int) -> None:
        """As many lanes as encoders or threads, and what that leaves for each."""
        self.lanes = Lanes(min(threads, len(self._bundle.info.modalities)) if self._provider == "cpu" else 1)
        self._lane_threads = threads // self.lanes.count if self._provider == "cpu" else self._threads

    def load(self, part: str) -> None:
        """Open the session of `part`; does nothing where it is open.

        Raises:
            BundleError: the part is missing or altered, or ONNX Runtime refuses it.
        """
        if part not in self._sessions:
            model, threads = self._bundle.part(self.part_set, part), self._lane_threads
            providers = chain(self._bundle, self._provider, self.part_set, part, threads)
            exact_qdq = self.part_set == "trt"
            self._sessions[part] = open_session(model, threads=threads, exact_qdq=exact_qdq, providers=providers)

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` on named tensors, batch first; returns its outputs as float32.

        Raises:
            BundleError: as `load`, or the part does not take these tensors, so part and contract differ.
        """
        self.load(part)
        batch = max((len(array) for array in inputs.values() if array.ndim), default=0)
        if batch <= ROWS:
            return self._run(part, inputs)
        pieces = [{name: array[k : k + ROWS] for name, array in inputs.items()} for k in range(0, batch, ROWS)]
        done, _ = self.lanes.run({str(k): partial(self._run, part, piece) for k, piece in enumerate(pieces)})
        first, *others = done.values()
        return {name: np.concatenate([array, *(other[name] for other in others)]) for name, array in first.items()}

    def _run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        try:
            return run_session(self._sessions[part], inputs)
        except Exception as error:  # onnxruntime's own errors share no base class
            raise BundleError(
                f"{self._bundle.folder}: {part} of {self.part_set} does not run as the contract says ({error}); "
                "export the bundle again"
            ) from None

    def pipeline(self) -> OnnxPipeline:
        """The parts chained; loads every part, on all cores but one unless their number was given.

        Raises:
            BundleError: as `load`.
        """
        if not self._threads:
            self._threads = loop_threads()
            self.lanes.close()
            self._sessions.clear()  # they have other threads
            self._share_out(self._threads)
        parts = (*self._bundle.info.modalities, HEAD)
        for part in parts:
            self.load(part)
        sessions = {part: self._sessions[part] for part in parts}
        pipeline = OnnxPipeline(self._bundle.info, sessions, self.lanes, self.name)
        self._pipelines.append(pipeline)
        return pipeline

    def close(self) -> None:
        """Free the sessions; pipelines over them cannot be used any more."""
        for pipeline in self._pipelines:
            pipeline.close()
        self._pipelines.clear()
        self._sessions.clear()
        self.lanes.close()

    def __enter__(self) -> OnnxBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
