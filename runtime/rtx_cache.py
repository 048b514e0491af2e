"""TensorRT-RTX compiles its kernels on the device: what it compiled is kept beside the engine for the next start."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from edgefuse.runtime.files import write_atomic


class RtxCache:
    """The settings of one context, and its cache of compiled kernels.

    TensorRT-RTX refuses a cache of another version, GPU or driver, and one that is damaged; then it compiles anew.

    Args:
        engine: an ICudaEngine of TensorRT-RTX.
        path: where the cache is, or will be.
        strategy: how it uses CUDA graphs.
    """

    def __init__(self, engine: Any, path: Path, strategy: Any) -> None:
        self.config = engine.create_runtime_config()
        self.config.cuda_graph_strategy = strategy
        self._cache = self.config.create_runtime_cache()
        self._path = path
        self._saved = b""
        with contextlib.suppress(OSError):  # none yet
            found = path.read_bytes()
            self._saved = found if self._cache.deserialize(found) else b""
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the cache where it has something new; a bundle that cannot be written to stays as it is."""
        memory = self._cache.serialize()
        content = b"" if memory is None else bytes(memory)
        if content and content != self._saved:
            with contextlib.suppress(OSError):
                write_atomic(self._path, content)
                self._saved = content
