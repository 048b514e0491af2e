"""Encoders and head on the GPU, chained: what an encoder writes is what the head reads, and it never leaves the GPU.

Each part has a stream of its own, so what is new is encoded side by side; the head's stream waits for them by events,
and the CPU waits once, for the head. No GPU has met these lines: they are tested over doubles of CUDA and of TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Outcome, Tensors
from edgefuse.runtime.bundle import HEAD, BundleInfo, token_tensor
from edgefuse.runtime.cuda import Cuda
from edgefuse.runtime.trt_part import Part

OnDevice = Mapping[str, tuple[int, int]]  # tensor -> address and bytes


class TrtPipeline:
    """A Pipeline; it is closed with its backend.

    Args:
        info: the contract.
        cuda: the GPU.
        new_part: opens a part for a batch, with some of its tensors on the device.
        at_work: around everything that uses the device.
    """

    def __init__(
        self,
        info: BundleInfo,
        cuda: Cuda,
        new_part: Callable[[str, int, OnDevice], Part],
        at_work: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._cuda = cuda
        self._at_work = at_work
        tokens = {}
        for modality, spec in info.tokens.items():
            nbytes = spec.count * spec.dim * np.dtype(np.float32).itemsize  # [1, N, D]
            tokens[token_tensor(modality)] = (cuda.device(nbytes), nbytes)
        self._encoders = {modality: new_part(modality, 1, tokens) for modality in info.modalities}
        self._head = new_part(HEAD, 1, tokens)
        for part in (*self._encoders.values(), self._head):
            part.warm_up()
            part.capture()
        self._clear(tokens)
        self._logits: NDArray[np.float32] = self._head.arrays["logits"][0]  # [C]
        self._weights: NDArray[np.float32] = self._head.arrays["weights"][0]  # [M]

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        """Encode what is new, keep the tokens of the rest, fuse; see Pipeline.

        Raises:
            BundleError: a part does not take these tensors; nothing has run.
            BackendError: the device failed.
        """
        with self._at_work():
            for modality, tensors in fresh.items():
                self._encoders[modality].fill(tensors)
            self._head.fill({"presence": presence})
            for modality in fresh:
                self._encoders[modality].start()
                self._cuda.wait(self._head.stream, self._encoders[modality].ended)
            self._head.start()
            self._head.finish()
            stages_ms = {modality: self._encoders[modality].elapsed_ms() for modality in fresh}
            stages_ms[HEAD] = self._head.elapsed_ms()
            return Outcome(self._logits, self._weights, stages_ms)

    def _clear(self, tokens: OnDevice) -> None:
        """Zeros for what was never encoded: the head must not read NaN, which a weight of 0 does not take away."""
        zeros = self._cuda.host(max(nbytes for _, nbytes in tokens.values()))
        zeros.array[...] = 0
        for address, nbytes in tokens.values():
            self._cuda.copy_in(address, zeros, nbytes, self._head.stream)
        self._head.finish()
