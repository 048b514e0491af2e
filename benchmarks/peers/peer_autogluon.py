"""AutoGluon MultiModal on picture and text: a model of its own, trained on the same manifest.

python -m edgefuse.benchmarks.peers.peer_autogluon JOB trains it; the worker then opens what that left.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, Query

FOLDER, TEXT_MODEL = "autogluon", "autogluon_text"  # in Job.made
COLUMNS = {"image": "image_path", "text": "text"}  # column -> its type; few different texts would count as categories


def train(job: Job) -> None:
    """Train on the lines of the splits train and val that have both sensors, with AutoGluon's medium preset.

    From random weights, as our own model: those of the preset lie on model hubs, which not every machine reaches.
    """
    import pandas
    from autogluon.multimodal import MultiModalPredictor

    from edgefuse.runtime.manifest import read_manifest

    def table(split: str) -> Any:
        lines = [line for line in read_manifest(job.manifest, split=split) if set(COLUMNS) <= set(line.sensors)]
        return pandas.DataFrame([{key: getattr(line, key) for key in (*COLUMNS, "label")} for line in lines])

    folder = job.file(FOLDER)
    if folder.exists():
        shutil.rmtree(folder)  # it takes no folder that is there
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(folder), pretrained=False)
    predictor.fit(
        table("train"),
        tuning_data=table("val"),
        presets="medium_quality",
        hyperparameters={"model.hf_text.checkpoint_name": _text_model(job)},
        column_types=COLUMNS,
        time_limit=job.training_s,
    )


def _text_model(job: Job) -> str:
    """The preset's text model, ELECTRA-small, as a folder without weights, with the vocabulary of the bundle."""
    from tokenizers import Tokenizer

    from edgefuse.runtime.bundle import TOKENIZER_FILE

    folder = job.file(TEXT_MODEL)
    folder.mkdir(exist_ok=True)
    pieces = Tokenizer.from_file(str(Path(job.bundle) / TOKENIZER_FILE))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    pieces.add_special_tokens(list(special.values()))  # those that ours lacks
    size = {"vocab_size": pieces.get_vocab_size(), "pad_token_id": pieces.token_to_id(special["pad_token"])}
    files = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
        "config.json": {"model_type": "electra", **size},  # everything else as ELECTRA-small has it
    }
    pieces.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


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
        return np.asarray(predictor.predict_proba(table, realtime=True)[labels])  # its own way for few rows

    return Opened(prepare, infer)


if __name__ == "__main__":
    train(Job(**json.loads(sys.argv[1])))
