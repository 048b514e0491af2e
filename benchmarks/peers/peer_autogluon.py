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

FOLDER, TEXT_MODEL, IMAGE_MODEL = "autogluon", "autogluon_text", "autogluon_image"  # in Job.made
COLUMNS = {"image": "image_path", "text": "text"}  # column -> its type; few different texts would count as categories


def train(job: Job) -> None:
    """Train on the lines of the splits train and val that have both sensors, with AutoGluon's medium preset.

    From random weights, as our own model: those of the preset lie on model hubs, which not every machine reaches. Both
    encoders are given as local folders, since AutoGluon 1.6 seeks the hub even where it is told `pretrained=False`.
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
    predictor = MultiModalPredictor(label="label", problem_type="multiclass", path=str(folder))
    predictor.fit(
        table("train"),
        tuning_data=table("val"),
        presets="medium_quality",
        hyperparameters={
            "model.hf_text.checkpoint_name": str(_text_model(job)),
            "model.timm_image.checkpoint_name": str(_image_model(job)),
        },
        column_types=COLUMNS,
        time_limit=job.training_s,
    )


def _text_model(job: Job) -> Path:
    """The preset's text model, ELECTRA-small, as a folder: random weights, the vocabulary of the bundle."""
    from tokenizers import Tokenizer
    from transformers import ElectraConfig, ElectraModel

    from edgefuse.runtime.bundle import TOKENIZER_FILE

    folder = job.file(TEXT_MODEL)
    pieces = Tokenizer.from_file(str(Path(job.bundle) / TOKENIZER_FILE))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep")}
    pieces.add_special_tokens(list(special.values()))  # those that ours lacks
    pad = pieces.token_to_id(special["pad_token"])
    config = ElectraConfig(vocab_size=pieces.get_vocab_size(), pad_token_id=pad)  # else as ELECTRA-small has it
    ElectraModel(config).save_pretrained(folder)
    pieces.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    return folder


def _image_model(job: Job) -> Path:
    """The preset's image model as a folder with random weights, laid out as AutoGluon saves those of timm."""
    import timm
    import torch

    folder = job.file(IMAGE_MODEL)
    folder.mkdir(exist_ok=True)
    model = timm.create_model("mobilenetv3_large_100", pretrained=False, num_classes=0)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config = {"architecture": model.default_cfg["architecture"], "num_features": model.num_features}
    _write(folder / "config.json", {**config, "pretrained_cfg": model.default_cfg})
    return folder


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


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
