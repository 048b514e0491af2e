"""Encoders and head on ONNX Runtime, chained: what an encoder writes is what the head reads, and nothing is copied.

The memory of every output is made once. Tokens of a missing modality stay as they are: the head puts a learned
placeholder in their place (train/model.py), so its answer does not depend on them by a single bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Outcome, Tensors
from edgefuse.runtime.bundle import HEAD, BundleInfo, token_tensor
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.lanes import Lanes


class OnnxPipeline:
    """A Pipeline over open sessions.

    Args:
        info: the contract.
        sessions: part -> its session, every encoder and the head.
        lanes: what the encoders run in, side by side.
        name: of the backend, for messages.
    """

    def __init__(self, info: BundleInfo, sessions: Mapping[str, Any], lanes: Lanes, name: str) -> None:
        self._name = name
        self._lanes = lanes
        self._sessions = dict(sessions)
        self._bindings = {part: session.io_binding() for part, session in sessions.items()}
        self._tokens: list[NDArray[np.float32]] = []  # kept after `close`, for an encoder that has not ended
        self._presence: NDArray[np.float32] | None = None  # [1, M], the caller's; seldom another one
        logits = np.zeros((1, len(info.labels)), np.float32)  # [1, C]
        weights = np.zeros((1, len(info.modalities)), np.float32)  # [1, M]
        self._logits, self._weights = logits[0], weights[0]
        for modality, spec in info.tokens.items():
            tokens = np.zeros((1, spec.count, spec.dim), np.float32)  # [1, N, D]
            self._bind_output(modality, token_tensor(modality), tokens)
            self._bindings[HEAD].bind_cpu_input(token_tensor(modality), tokens)
            self._tokens.append(tokens)
        self._bind_output(HEAD, "logits", logits)
        self._bind_output(HEAD, "weights", weights)

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        """Encode what is new, keep the tokens of the rest, fuse; see Pipeline."""
        if not self._sessions:
            raise BackendError(f"{self._name} is closed; open the backend again")
        try:
            jobs = {part: partial(self._run, part, tensors) for part, tensors in fresh.items()}
            _, stages_ms = self._lanes.run(jobs)
            began = perf_counter()
            self._run(HEAD, {} if presence is self._presence else {"presence": presence})
            self._presence = presence
            stages_ms[HEAD] = (perf_counter() - began) * 1e3
        except BackendError:
            self.close()
            raise
        return Outcome(self._logits, self._weights, stages_ms)

    def _run(self, part: str, tensors: Tensors) -> None:
        try:
            for name, array in tensors.items():
                self._bindings[part].bind_cpu_input(name, array)
            self._sessions[part].run_with_iobinding(self._bindings[part])
        except Exception as error:  # onnxruntime's own errors share no base class
            raise BackendError(f"{part} failed on {self._name}: {' '.join(str(error).split())}") from None

    def close(self) -> None:
        """Let go of the sessions; twice is fine."""
        self._bindings.clear()
        self._sessions.clear()

    def _bind_output(self, part: str, name: str, array: NDArray[np.float32]) -> None:
        self._bindings[part].bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
