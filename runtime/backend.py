"""What a backend is: something that runs the parts of a bundle, and is closed after use."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """Runs one part at a time; the predictor decides which parts are needed."""

    name: str

    def load(self, part: str) -> None:
        """Make `part` ready, so that its first `run` takes no longer than the others; once is enough."""
        ...

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part` ("image", "audio", "text" or "head") on named tensors, batch first; returns its outputs."""
        ...

    def close(self) -> None:
        """Free the device; calling it twice is fine."""
        ...

    def __enter__(self) -> Backend: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
