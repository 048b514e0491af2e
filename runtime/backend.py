"""What a backend is: something that runs the parts of a bundle, and is closed after use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.lanes import Lanes

Tensors = Mapping[str, NDArray[Any]]
Runner = Callable[[Tensors], dict[str, NDArray[np.float32]]]  # named inputs -> named outputs, batch first


class Parts(Protocol):
    """Runs parts; the predictor decides which are needed."""

    @property
    def lanes(self) -> Lanes:
        """What parts that do not need each other may run in."""
        ...

    def load(self, part: str) -> None:
        """Make `part` ready, so that its first `run` takes no longer than the others; once is enough."""
        ...

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` ("image", "audio", "text" or "head") on named tensors, batch first; returns its outputs."""
        ...


class Backend(Parts, Protocol):
    """A device with the parts of one bundle."""

    name: str

    def pipeline(self) -> Pipeline:
        """The parts chained for one stream of decisions; loads every part."""
        ...

    def close(self) -> None:
        """Free the device; calling it twice is fine."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Outcome(NamedTuple):
    """What one run of a pipeline gave; the arrays are its own and change with the next run."""

    logits: NDArray[np.float32]  # [C]
    weights: NDArray[np.float32]  # [M], 0 where missing
    stages_ms: dict[str, float]  # each part that ran -> its time


class Pipeline(Protocol):
    """Encoders and head chained for one stream of decisions: what an encoder gives stays where the head reads it.

    A pipeline belongs to the thread that made it, allocates nothing after its first run of each part, and is closed
    with its backend.
    """

    def run(self, fresh: Mapping[str, Tensors], presence: NDArray[np.float32]) -> Outcome:
        """Encode what is new, keep the tokens of the rest, fuse.

        Args:
            fresh: modality -> its sensor tensors (see SENSOR_TENSORS), batch of one; read before this returns, so they
                may be written again afterwards. A modality that is left out keeps the tokens of its last run.
            presence: [1, M], 1 where the modality counts; one that was never encoded must be 0.

        Raises:
            BackendError: the device or the runtime failed; this pipeline cannot be used any more.
        """
        ...


class OpenParts:
    """Parts that someone else has opened.

    Args:
        runners: part -> what runs it; it may hold only the parts that are going to run.
    """

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = runners
        self.lanes = Lanes(1)

    def load(self, part: str) -> None:
        """Every part is open."""

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` on named tensors."""
        return self._runners[part](inputs)
