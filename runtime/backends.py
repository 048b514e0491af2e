"""Which backends there are: opens the one that is asked for, by name."""

from __future__ import annotations

from edgefuse.runtime.backend import Backend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.engines import COMPILED_SET, ENGINE_TARGETS
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.providers import PROVIDERS, part_set_for

DEFAULT = "cpu"
KINDS = (*PROVIDERS, *ENGINE_TARGETS)


def part_set_of(bundle: Bundle, kind: str | None, part_set: str | None = None) -> str:
    """The parts that `open_backend` runs when it is asked for this."""
    return part_set or (COMPILED_SET if kind in ENGINE_TARGETS else part_set_for(bundle, kind or DEFAULT))


def open_backend(bundle: Bundle, kind: str | None, threads: int = 0, part_set: str | None = None) -> Backend:
    """A backend for the parts of `bundle`.

    Args:
        bundle: an open bundle.
        kind: one of KINDS; None takes ONNX Runtime's own CPU kernels.
        threads: CPU threads of all parts together; 0 takes every core. Only ONNX Runtime computes on the CPU.
        part_set: the parts to run; None takes those that are made for the backend.

    Raises:
        BackendError: no such backend, or it cannot run these parts here.
        EngineError, BundleError, MissingExtraError: see TrtBackend and OnnxBackend.
    """
    if kind in ENGINE_TARGETS:
        if part_set not in (None, COMPILED_SET):
            raise BackendError(f"{kind} runs engines of the {COMPILED_SET} parts, not {part_set}; leave --part-dir out")
        from edgefuse.runtime.backend_trt import TrtBackend

        return TrtBackend(bundle, kind)
    if kind not in (None, *KINDS):
        raise BackendError(f"no backend is called {kind!r}; choose one of: {', '.join(KINDS)}")
    from edgefuse.runtime.backend_onnx import OnnxBackend

    return OnnxBackend(bundle, part_set, threads, provider=kind or DEFAULT)
