"""A strict double of the TensorRT runtime: a module `tensorrt` whose engines run their ONNX part by ONNX Runtime.

It works on the memory and the streams of the double of CUDA (cuda_double.py), so what is enqueued runs as late as CUDA
allows. What the real thing answers with False or None and a line in its log, the double answers with the same, and
writes nothing; what the real thing would let pass, to crash or to compute rubbish, is a Misuse.

    trt = TrtDouble(driver)
    trt.module                    # stands for tensorrt, or with target="tensorrt-rtx" for tensorrt_rtx
    trt.fail("execute_async_v3")  # the next call answers False, None or an error in its way
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from enum import Enum, IntEnum
from types import ModuleType
from typing import Any

from tests.cuda_double import Driver
from tests.cuda_order import Misuse
from tests.trt_context import DTYPES, Context, CudaGraphStrategy, Object, at_batch
from tests.trt_plan import VERSIONS, Io, Plan, read_plan

DataType = Enum("DataType", [*DTYPES, "BF16", "FP8", "INT4"])
TensorIOMode = IntEnum("TensorIOMode", ["NONE", "INPUT", "OUTPUT"], start=0)


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    """As the binding's: a subclass that does not call this constructor cannot be used."""

    Severity = Severity

    def __init__(self) -> None:
        self.is_made = True


class TrtDouble:
    """TensorRT in this process.

    Args:
        driver: the GPU.
        target: "tensorrt" or "tensorrt-rtx".
        is_current: whether a CUDA context is current in this thread.
    """

    def __init__(self, driver: Driver, target: str = "tensorrt", is_current: Callable[[], bool] = lambda: True) -> None:
        self.driver = driver
        self.target = target
        self.is_rtx = target == "tensorrt-rtx"
        self.calls: Counter[str] = Counter()
        self.logger: Any = None  # the first one registered counts
        self.not_capturable: set[str] = set()  # names of an input, whose engines cannot be captured
        self.compiled: list[tuple[str, int]] = []  # by TensorRT-RTX on the device: an output, and the batch
        self._is_current = is_current
        self._planned: set[tuple[str, int]] = set()  # function, number of its call
        self.module = self._module()

    def fail(self, function: str, nth: int = 1) -> None:
        """Let the nth call from now (1: the next one) fail in its own way."""
        self._planned.add((function, self.calls[function] + nth))

    def begin(self, function: str) -> bool:
        """Count a call; whether it shall fail."""
        if not self._is_current():
            raise self.misuse(f"{function} without a current CUDA context")
        self.calls[function] += 1
        return (function, self.calls[function]) in self._planned

    def misuse(self, message: str) -> Misuse:
        """To be raised, and not forgotten where it is swallowed."""
        self.driver.misuses.append(message)
        return Misuse(message)

    def error(self, message: str) -> None:
        """A line of the log."""
        self.logger.log(Severity.ERROR, message)

    def _module(self) -> ModuleType:
        module: Any = ModuleType("tensorrt_rtx" if self.is_rtx else "tensorrt")
        module.__version__ = ".".join(map(str, VERSIONS[self.target]))
        module.ILogger, module.DataType, module.TensorIOMode = ILogger, DataType, TensorIOMode
        module.Runtime = lambda logger: Runtime(self, logger)
        module.ICudaEngine, module.IExecutionContext = Engine, Context
        if self.is_rtx:
            module.CudaGraphStrategy = CudaGraphStrategy
        return module


class Runtime(Object):
    def __init__(self, trt: TrtDouble, logger: Any) -> None:
        super().__init__(trt, None)
        if not isinstance(logger, ILogger) or not hasattr(logger, "is_made"):
            raise TypeError("ILogger.__init__() must be called when overriding __init__")
        trt.logger = trt.logger or logger
        if self.begin("Runtime"):
            trt.error("CUDA initialization failure with error: 35.")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        is_refused = self.begin("deserialize_cuda_engine")
        plan = "Error Code 2: OutOfMemory" if is_refused else read_plan(self.trt.target, serialized_engine)
        if isinstance(plan, str):
            self.trt.error(plan)
            return None
        return Engine(self, plan)


class Engine(Object):
    def __init__(self, runtime: Runtime, plan: Plan) -> None:
        super().__init__(runtime.trt, runtime)
        self._plan = plan
        self._tensors = {tensor.name: tensor for tensor in plan.tensors}

    @property
    def num_io_tensors(self) -> int:
        self.begin("num_io_tensors")
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        self.begin("get_tensor_name")
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:  # type: ignore[valid-type]
        return TensorIOMode["INPUT" if self._tensor(name).is_input else "OUTPUT"]

    def get_tensor_dtype(self, name: str) -> DataType:  # type: ignore[valid-type]
        return DataType[self._tensor(name).kind]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).sizes

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        tensor = self._tensor(name)
        if profile_index != 0 or not tensor.is_input:
            raise self.trt.misuse(f"the profile {profile_index} of {name}, which has none")
        return [at_batch(tensor, batch) for batch in self._plan.batches]

    def create_execution_context(self, config: Config | None = None) -> Context | None:
        if self.begin("create_execution_context"):
            self.trt.error("Error Code 2: OutOfMemory (Requested size was 1048576 bytes.)")
            return None
        return Context(self, self._plan, config)

    def create_runtime_config(self) -> Config:
        self.begin("create_runtime_config")
        if not self.trt.is_rtx:
            raise AttributeError("create_runtime_config")  # TensorRT 10.3 has none
        return Config(self)

    def _tensor(self, name: str) -> Io:
        self.begin("get_tensor")
        if name not in self._tensors:
            raise self.trt.misuse(f"the engine has no tensor {name!r}")
        return self._tensors[name]


class Config(Object):
    """IRuntimeConfig of TensorRT-RTX."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.trt, engine)
        self.cuda_graph_strategy = CudaGraphStrategy["DISABLED"]
        self.cache: Cache | None = None

    def create_runtime_cache(self) -> Cache:
        self.begin("create_runtime_cache")
        return Cache(self.trt)

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.begin("set_runtime_cache")
        self.cache = cache
        return True


class Cache:
    """IRuntimeCache of TensorRT-RTX: which batches of which outputs were compiled, for this GPU."""

    HEAD = b"cache of 1.7.1.116 for SM 89:"

    def __init__(self, trt: TrtDouble) -> None:
        self.trt = trt
        self.known: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        self.trt.begin("cache.deserialize")
        if not blob.startswith(self.HEAD):
            self.trt.error("Version tag does not match.")
            return False
        self.known = set(blob[len(self.HEAD) :].decode().split())
        return True

    def serialize(self) -> memoryview:
        self.trt.begin("cache.serialize")
        return memoryview(self.HEAD + " ".join(sorted(self.known)).encode())
