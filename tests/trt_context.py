"""The part of the double of TensorRT (trt_double.py) that runs: a context over device memory, and its kernel."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from edgefuse.runtime.backend_onnx import open_session, run_session
from tests.cuda_double import Driver
from tests.cuda_order import Misuse
from tests.trt_plan import Io, Plan

if TYPE_CHECKING:
    from tests.trt_double import Config, Engine, TrtDouble

SCRATCH = 256  # bytes that a context computes in
DTYPES = {"FLOAT": "f4", "HALF": "f2", "INT8": "i1", "UINT8": "u1", "INT32": "i4", "INT64": "i8", "BOOL": "?"}
CudaGraphStrategy = IntEnum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"], start=0)


class Object:
    """An object of TensorRT, used by one thread, and not after what it was made of is gone."""

    def __init__(self, trt: TrtDouble, parent: Object | None) -> None:
        self.trt = trt
        self.parent = None if parent is None else weakref.ref(parent)
        self.children = weakref.WeakSet[Object]()
        self.thread = threading.get_ident()
        if parent is not None:
            parent.children.add(self)

    def begin(self, function: str) -> bool:
        """Every call: whether it shall fail."""
        if threading.get_ident() != self.thread:
            raise self.trt.misuse(f"{function} from another thread")
        if self.is_orphan():
            raise self.trt.misuse(f"{function} after what it was made of was deleted")
        return self.trt.begin(function)

    def is_orphan(self) -> bool:
        """Whether a thing that it stands on is gone."""
        parent = None if self.parent is None else self.parent()
        return self.parent is not None and (parent is None or parent.is_orphan())

    def __del__(self) -> None:
        if self.children:
            self.trt.misuse(f"a {type(self).__name__} deleted before what was made of it")


class Context(Object):
    def __init__(self, engine: Engine, plan: Plan, config: Config | None) -> None:
        super().__init__(engine.trt, engine)
        self._plan = plan
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}
        self._config = config
        self._session = open_session(plan.model, threads=1, exact_qdq=True)
        self._shapes = {t.name: t.sizes for t in plan.tensors}
        self._addresses: dict[str, int] = {}
        self._is_inferred = self._is_warm = False
        driver = self.trt.driver
        self._scratch = driver._allocate(SCRATCH, is_host=False, is_seen_by_device=True)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        is_refused, tensor = self.begin("set_input_shape"), self._tensors.get(name)
        least, _, most = self._plan.batches
        fits = tensor is not None and tensor.is_input and not is_refused
        if not fits or tuple(shape) not in [at_batch(tensor, batch) for batch in range(least, most + 1)]:
            self.trt.error(
                f"IExecutionContext::setInputShape: Error Code 3: API Usage Error (Set dimension {list(shape)} for "
                f"tensor {name} does not satisfy any optimization profiles.)"
            )
            return False
        if self._shapes[name] != tuple(shape):
            self._is_inferred = self._is_warm = False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        if self.begin("infer_shapes"):
            raise RuntimeError("Shape inference failed.")
        missing = [t.name for t in self._plan.tensors if t.is_input and -1 in self._shapes[t.name]]
        if not missing:
            (batch, *others) = {self._shapes[t.name][0] for t in self._plan.tensors if t.is_input}
            if others:
                raise RuntimeError(f"the inputs have batches of {sorted([batch, *others])}")
            self._shapes = {t.name: at_batch(t, batch) for t in self._plan.tensors}
            self._is_inferred = True
        return missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        self.begin("context.get_tensor_shape")
        return self._shapes[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.begin("set_tensor_address") or name not in self._tensors or not memory:
            self.trt.error(f"IExecutionContext::setTensorAddress: Error Code 3: API Usage Error ({name})")
            return False
        self._addresses[name] = int(memory)
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        is_refused = self.begin("execute_async_v3")
        if stream_handle == 0:
            raise self.trt.misuse("work on the default stream")
        if why := self._unready() or ("Error Code 1: Cuda Runtime (invalid device function)" if is_refused else ""):
            self.trt.error(f"IExecutionContext::enqueueV3: {why}")
            return False
        driver = self.trt.driver
        if driver.is_capturing(stream_handle) and not (self._is_warm and self._is_capturable()):
            driver.invalidate(stream_handle)
            self.trt.error("Error Code 1: Cuda Runtime (operation not permitted when stream is capturing)")
            return False
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        places = {name: (addresses[name], nbytes(self._tensors[name], shapes[name])) for name in shapes}
        scratch = (self._scratch, SCRATCH)
        driver.enqueue(
            stream_handle,
            kernel(driver, self._session, self._tensors, shapes, places),
            reads=[place for name, place in places.items() if self._tensors[name].is_input],
            writes=[scratch, *(place for name, place in places.items() if not self._tensors[name].is_input)],
        )
        self._is_warm = True
        self._compile()
        return True

    def _unready(self) -> str:
        """Why it cannot run yet."""
        for tensor in self._plan.tensors:
            if -1 in self._shapes[tensor.name]:
                return f"Error Code 3: API Usage Error (the shape of {tensor.name} is not specified)"
            if tensor.name not in self._addresses:
                kind = "input" if tensor.is_input else "output"
                return f"Error Code 3: API Usage Error (Address is not set for {kind} tensor {tensor.name}.)"
        if not self._is_inferred:
            raise self.trt.misuse("execute_async_v3 before infer_shapes")
        return ""

    def _is_capturable(self) -> bool:
        has_graph = self._config is not None and self._config.cuda_graph_strategy != CudaGraphStrategy["DISABLED"]
        return not has_graph and not self.trt.not_capturable.intersection(self._tensors)

    def _compile(self) -> None:
        """TensorRT-RTX compiles for each new batch, where the cache does not have it."""
        if self._config is not None and self._config.cache is not None:
            output = self._plan.tensors[-1]
            batch = self._shapes[output.name][0]
            if f"{output.name}:{batch}" not in self._config.cache.known:
                self._config.cache.known.add(f"{output.name}:{batch}")
                self.trt.compiled.append((output.name, batch))

    def __del__(self) -> None:
        super().__del__()
        if hasattr(self, "_scratch"):
            driver = self.trt.driver
            try:
                driver._free(driver._block(self._scratch, "device"), is_host=False)
            except Misuse as misuse:  # nobody would see it from here
                self.trt.misuse(str(misuse))


def kernel(
    driver: Driver,
    session: Any,
    tensors: Mapping[str, Io],
    shapes: Mapping[str, tuple[int, ...]],
    places: Mapping[str, tuple[int, int]],
) -> Callable[[], None]:
    """What runs on the GPU: the ONNX part over device memory."""

    def view(name: str) -> np.ndarray:
        return driver.view(*places[name]).view(DTYPES[tensors[name].kind]).reshape(shapes[name])

    def run() -> None:
        outputs = run_session(session, {name: view(name).copy() for name, t in tensors.items() if t.is_input})
        for name, array in outputs.items():
            view(name)[...] = array

    return run


def at_batch(tensor: Io, batch: int) -> tuple[int, ...]:
    """A tensor's shape."""
    return tuple(batch if size == -1 else size for size in tensor.sizes)


def nbytes(tensor: Io, shape: tuple[int, ...]) -> int:
    """What a tensor of this shape takes."""
    return int(np.prod(shape)) * np.dtype(DTYPES[tensor.kind]).itemsize
