"""Readings for the loop's benchmarks: pictures, sounds and texts of a manifest, as the sensors would leave them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgefuse.benchmarks.latency import spread
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.mailbox import Mailbox
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.preprocess import Preprocessor

Readings = dict[str, list[Tensors]]  # modality -> some readings of it


def examples_of(bundle: Bundle, manifest: Path, count: int) -> list[Example]:
    """`count` test lines at even distances, of those that have every sensor of the model.

    Raises:
        ManifestError: there is none.
    """
    examples = read_manifest(manifest, split="test", labels=bundle.info.labels)
    full = [example for example in examples if set(example.sensors) >= set(bundle.info.modalities)]
    if not full:
        raise ManifestError(f"{manifest}: no test line has all of {', '.join(bundle.info.modalities)}")
    return spread(full, count)


def readings_of(bundle: Bundle, examples: Sequence[Example]) -> Readings:
    """The tensors of each sensor of each example."""
    preprocessor = Preprocessor(bundle)
    return {
        m: [preprocessor.prepare(m, preprocessor.decode(m, getattr(example, m))) for example in examples]
        for m in bundle.info.modalities
    }


def mailbox_for(readings: Readings) -> Mailbox:
    """A mailbox that takes such readings."""
    return Mailbox(lambda m: {name: np.empty_like(t) for name, t in readings[m][0].items()}, tuple(readings))


def fill(tensors: Tensors, reading: Tensors) -> None:
    """Copy a reading to where a sensor writes."""
    for name, tensor in reading.items():
        np.copyto(tensors[name], tensor)
