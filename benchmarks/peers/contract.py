"""What a peer and the process that runs it agree on; imported in every environment, so only numpy and runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Query = Mapping[str, str]  # sensor -> path of the picture or sound, or the text itself
# In `Job.made`: the fp32 parts as one graph, and the tensors of training lines to calibrate on.
WHOLE, SAMPLES = "whole.onnx", "samples.npz"


@dataclass(frozen=True, slots=True)
class Job:
    """What a peer is given; passed to its process as JSON."""

    bundle: str  # the folder of the bundle
    made: str  # the folder of what was made of it for the peers
    run: str | None  # the folder of the run that the bundle was exported from
    manifest: str  # the data
    threads: int  # CPU threads, the same for all
    batch: int  # rows of each call, 1 or more
    training_s: int = 600  # what a peer that trains its own model may take for it

    def file(self, name: str) -> Path:
        """A file in `made`."""
        return Path(self.made) / name


class Opened(NamedTuple):
    """A peer that is ready to answer, in the two steps that are timed."""

    prepare: Callable[[Sequence[Query]], Any]  # decode, resize, tokenise: [B] queries -> what `infer` takes
    infer: Callable[[Any], np.ndarray]  # -> scores [B, C], a column per label of the bundle


Open = Callable[[str, Job], Opened]  # how each module of a peer is opened: its option, its job


def our_host(job: Job) -> Callable[[Sequence[Query]], Any]:
    """edgefuse's own decoding, resizing and tokenising: for itself, and for peers that bring none."""
    from edgefuse.benchmarks.triton_client import request_for
    from edgefuse.runtime.bundle import Bundle
    from edgefuse.runtime.manifest import Example
    from edgefuse.runtime.preprocess import Preprocessor

    bundle = Bundle.open(job.bundle)
    preprocessor, modalities = Preprocessor(bundle), bundle.info.modalities
    absent: dict[str, Any] = {"image": None, "audio": None, "text": None, "label": None, "answer_type": None}

    def prepare(queries: Sequence[Query]) -> Any:
        examples = [Example(**{"where": "query", "split": "test", **absent, **query}) for query in queries]
        return request_for(preprocessor, modalities, examples)

    return prepare
