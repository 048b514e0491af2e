"""AutoGluon MultiModal on picture and text: a model of its own, trained on the same manifest.

python -m edgefuse.benchmarks.peers.peer_autogluon JOB trains it; the worker then opens what that left.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, Query

FOLDER = "autogluon"  # in Job.made
COLUMNS = ("image", "text")
TRAINING_S = 600  # what AutoGluon may take; our demo trains for five minutes


def train(job: Job) -> None:
    """Train on the lines of the splits train and val that have both sensors, with AutoGluon's own presets."""
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    from edgefuse.runtime.manifest import read_manifest

    def table(split: str) -> Any:
        lines = [line for line in read_manifest(job.manifest, split=split) if set(COLUMNS) <= set(line.sensors)]
        return pandas.DataFrame([{key: getattr(line, key) for key in (*COLUMNS, "label")} for line in lines])

    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(job.file(FOLDER)))
    predictor.fit(table("train"), tuning_data=table("val"), presets="medium_quality", time_limit=TRAINING_S)


def open_peer(option: str, job: Job) -> Opened:
    """What `train` left; its scores are probabilities in the order of the bundle's labels."""
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    from edgefuse.runtime.bundle import Bundle

    predictor = MultiModalPredictor.load(str(job.file(FOLDER)))
    labels = list(Bundle.open(job.bundle).info.labels)

    def prepare(queries: Sequence[Query]) -> Any:
        return pandas.DataFrame([{column: query.get(column) for column in COLUMNS} for query in queries])

    def infer(table: Any) -> np.ndarray:
        return np.asarray(predictor.predict_proba(table)[labels])

    return Opened(prepare, infer)


if __name__ == "__main__":
    train(Job(**json.loads(sys.argv[1])))
