"""The TensorRT backend: runs the engines of a bundle on the GPU, by TensorRT or TensorRT-RTX.

It belongs to the thread that opened it: contexts and streams are not for two. No GPU has met these lines: they are
tested over doubles of CUDA and of TensorRT that refuse what the real ones refuse.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Pipeline, Tensors
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.cuda import Cuda, open_cuda
from edgefuse.runtime.engines import COMPILED_SET, Machine, engine_file, open_engine
from edgefuse.runtime.errors import BackendError, BundleError, EngineError, MissingExtraError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.machine import PLATFORM, find_gpu
from edgefuse.runtime.pipeline_trt import TrtPipeline
from edgefuse.runtime.trt_package import use_package
from edgefuse.runtime.trt_part import Part

if TYPE_CHECKING:  # it imports tensorrt, which means nothing before use_package
    from edgefuse.runtime.trt_engine import Engine


class TrtBackend:
    """Runs the engines of one target; an engine is loaded when it is first needed.

    Args:
        bundle: an open bundle, with engines that `edgefuse build` made for this machine.
        target: "tensorrt" or "tensorrt-rtx".
        cuda: device memory, closed with the backend; None takes cuda-python, or pycuda where only that is installed.

    Raises:
        BundleError: the bundle has no such parts.
        EngineError: no GPU, or no TensorRT that can be used.
        MissingExtraError: neither cuda-python nor pycuda is installed.
        BackendError: CUDA cannot be used.
    """

    def __init__(self, bundle: Bundle, target: str, cuda: Cuda | None = None) -> None:
        self.name = target
        self.lanes = Lanes(1)  # a GPU is one, and it belongs to this thread
        bundle.part_info(COMPILED_SET, HEAD)  # refuse a missing part set now
        trt = use_package(target, "--backend")
        try:
            gpu = find_gpu()
        except EngineError as error:
            raise EngineError(f"--backend {target} needs an NVIDIA GPU: {error}; --backend cpu needs none") from None
        self._machine = Machine(str(trt.__version__), gpu.sm, gpu.name, gpu.cuda, PLATFORM)
        self._bundle = bundle
        self._owner = threading.current_thread()
        self._error = ""  # what ended it
        self._is_closed = False
        self._engines: dict[str, Engine] = {}
        self._parts: dict[str, Part] = {}
        self._open = contextlib.ExitStack()  # all that must be closed, the latest first
        self._cuda = cuda or any_cuda()
        try:
            self._open_runtime()
        except BaseException:
            self._cuda.close()
            raise

    def load(self, part: str) -> None:
        """Load the engine of `part`, make its memory, and run it once; does nothing where that is done.

        Raises:
            EngineError: there is no engine that fits this bundle and this machine, or TensorRT does not take it.
            BackendError: the device failed.
        """
        with self.at_work():
            self._loaded(part)

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` on named tensors, batch first; returns its outputs as float32.

        A batch that is larger than what the engine was built for is run in pieces.

        Raises:
            EngineError: as `load`.
            BundleError: the part does not take these tensors.
            BackendError: the device failed.
        """
        with self.at_work():
            loaded, (least, most) = self._loaded(part), self._engine(part).batches
            batch = max((len(array) for array in inputs.values() if array.ndim), default=0)
            if batch < least:
                raise BundleError(f"{self.name} runs {part} with batches of {least} to {most}, not of {batch}")
            outputs: dict[str, NDArray[np.float32]] = {}
            for start in range(0, batch, most):
                piece = {name: array[start : start + most] for name, array in inputs.items()}
                for name, array in loaded.run(piece, min(most, batch - start)).items():
                    if start == 0:
                        outputs[name] = np.empty((batch, *array.shape[1:]), np.float32)
                    outputs[name][start : start + most] = array
            return outputs

    def pipeline(self) -> Pipeline:
        """The parts chained on the GPU for one stream of decisions; loads every part.

        Raises:
            EngineError, BackendError: as `load`.
        """
        with self.at_work():
            return TrtPipeline(self._bundle.info, self._cuda, self._new_part, self.at_work)

    def close(self) -> None:
        """Free the device, in the order that TensorRT needs; twice is fine.

        Raises:
            BackendError: CUDA failed while it was freed, as after any lasting error; everything is let go all the same.
        """
        if self._is_closed:
            return
        if self._owner.is_alive():
            self._refuse_other_threads()
        self._is_closed = True
        self._error = self._error or "it is closed"
        self._parts.clear()
        self._engines.clear()
        try:
            with self._cuda.current():
                self._open.close()
        finally:
            self._cuda.close()

    def __enter__(self) -> TrtBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Around everything that uses the device: by the thread it belongs to, while nothing has failed."""
        self._refuse_other_threads()
        if self._error:
            raise BackendError(f"{self.name} cannot be used any more ({self._error}); open the backend again")
        try:
            with self._cuda.current():
                yield
        except BackendError as error:
            self._error = str(error)
            raise

    def _refuse_other_threads(self) -> None:
        caller = threading.current_thread()
        if caller is not self._owner:
            raise BackendError(
                f"{self.name} belongs to the thread {self._owner.name!r} that opened it and was used from "
                f"{caller.name!r}; open one for each thread"
            )

    def _open_runtime(self) -> None:
        from edgefuse.runtime.trt_engine import open_runtime

        with self._cuda.current():
            self._runtime = open_runtime(self.name)
        self._open.callback(self._close_runtime)

    def _close_runtime(self) -> None:
        del self._runtime

    def _engine(self, part: str) -> Engine:
        """The engine of `part`, loaded once."""
        from edgefuse.runtime.trt_engine import Engine

        if part not in self._engines:
            plan = open_engine(self._bundle, self.name, part, self._machine)
            cache = engine_file(self._bundle.folder, self.name, part, ".cache")
            self._engines[part] = engine = Engine(self._runtime, f"the {self.name} engine of {part}", plan, cache)
            self._open.callback(engine.close)
        return self._engines[part]

    def _new_part(self, part: str, batch: int, on_device: Mapping[str, tuple[int, int]]) -> Part:
        """A part of its own, for batches up to `batch`."""
        made = Part(self._cuda, self._engine(part), batch, on_device)
        self._open.callback(made.close)
        return made

    def _loaded(self, part: str) -> Part:
        """What `run` uses, made and warmed up once."""
        if part not in self._parts:
            least, most = self._engine(part).batches
            made = self._new_part(part, most, {})
            made.set_batch(least)
            made.warm_up()
            self._parts[part] = made
        return self._parts[part]


def any_cuda() -> Cuda:
    """The GPU by cuda-python, or by pycuda where only that is installed; raises as `open_cuda`."""
    try:
        return open_cuda("cuda-python")
    except MissingExtraError:
        with contextlib.suppress(MissingExtraError):
            return open_cuda("pycuda")
        raise
