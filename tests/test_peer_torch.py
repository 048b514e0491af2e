"""The peers in PyTorch: they make of files what training reads, and their scores are those of the run's model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from edgefuse.benchmarks.peers import peer_torch
from edgefuse.benchmarks.peers.contract import Job
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.data import Loader
from edgefuse.train.runs import Run
from edgefuse.train.train import train
from tests.train_fixtures import corpus, write_recipe

SENSORS = ("image", "audio", "text")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A run of the tiny recipe that has learned nothing: what its model is worth does not matter here."""
    folder = tmp_path_factory.mktemp("run")
    train(str(write_recipe(folder / "tiny.yaml", train={"epochs": 0})), [], folder / "run")
    return Job("", str(folder), str(folder / "run"), str(corpus()), threads=torch.get_num_threads(), batch=2)


@pytest.fixture(scope="module")
def read(job):
    """Lines of the corpus, and what training makes of them: (queries, tensors a row per query)."""
    run = Run.open(Path(job.run))
    lines = read_manifest(corpus(), split="test", limit=4)
    lines[3] = dataclasses.replace(lines[3], audio=None)
    batch = Loader(run.recipe, run.labels, run.text_tokenizer()).batch(
        lines, [line.audio for line in lines], [set(line.sensors) for line in lines]
    )
    names = {"image": ("image",), "audio": ("audio",), "text": ("input_ids", "attention_mask")}
    tensors = {name: batch.inputs[name][batch.index[m]] for m in SENSORS for name in names[m]}
    queries = [{sensor: getattr(line, sensor) for sensor in line.sensors} for line in lines]
    return queries, {**tensors, "presence": batch.presence}


def test_the_pipeline_makes_of_files_what_training_reads(job, read):
    queries, expected = read

    made = peer_torch.open_peer("pipeline", job).prepare(queries)

    assert made["presence"].tolist() == expected["presence"].tolist() == [[1, 1, 1]] * 3 + [[1, 0, 1]]
    assert torch.equal(made["input_ids"], expected["input_ids"])
    assert torch.equal(made["attention_mask"], expected["attention_mask"])
    assert made["image"].dtype == torch.uint8
    assert made["image"].shape == expected["image"].shape
    apart = (made["image"].float() - expected["image"].float()).abs()
    assert apart.mean() < 2, "of 255: two ways to resize"
    assert torch.allclose(made["audio"][:3], expected["audio"][:3], atol=1e-3)
    assert not made["audio"][3].any()


def test_the_scores_are_those_of_the_model_of_the_run(job, read, monkeypatch):
    queries, tensors = read
    monkeypatch.setattr(
        peer_torch, "our_host", lambda _: lambda _: {name: rows.numpy() for name, rows in tensors.items()}
    )
    model = Run.open(Path(job.run)).trained_model()
    with torch.no_grad():
        expected = model(tensors, tensors["presence"])[0].numpy()

    eager = peer_torch.open_peer("eager", job)

    np.testing.assert_allclose(eager.infer(eager.prepare(queries)), expected, atol=1e-5)
