"""The client of Triton, against a stand-in that computes from the very repository and refuses what Triton does."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgefuse.benchmarks import triton_client
from edgefuse.benchmarks.triton_client import PORTS, Server, measure, request_for
from edgefuse.optimize.triton import export_triton
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, MissingExtraError, OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Predictor, softmax

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("tritonclient.http")

from tests.triton_server import Repository, serve_grpc, serve_http

SERVE = {"grpc": serve_grpc, "http": serve_http}


@pytest.fixture
def repository(tiny, tmp_path):
    export_triton(tiny.bundle, tmp_path / "models", max_batch=4)
    return Repository(tmp_path / "models")


@pytest.fixture
def gaps(tiny, tmp_path):
    """Lines that lack this or that sensor."""
    rows = [json.loads(line) for line in tiny.manifest.read_text().splitlines()][:6]
    for row, lacks in zip(rows, [(), ("image",), ("audio", "text"), ("text",), ("image", "audio"), ()], strict=True):
        for modality in ("image", "audio"):
            row[modality] = str(tiny.media / row[modality])
        for modality in lacks:
            del row[modality]
    path = tmp_path / "gaps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("protocol", PORTS)
def test_the_server_answers_what_the_predictor_does_whatever_a_line_lacks(tiny, repository, gaps, protocol):
    bundle = Bundle.open(tiny.bundle)
    examples = read_manifest(gaps)
    with OnnxBackend(bundle, "fp32") as backend, SERVE[protocol](repository) as url:
        predictor = Predictor(bundle, backend)
        server = Server(url, protocol, "tiny")
        answers = []
        for group in (examples[:4], examples[4:]):  # batches of four and two
            tensors = request_for(predictor.preprocessor, bundle.info.modalities, group)
            answers += list(zip(*server.ask(tensors), strict=True))
        server.close()
        for example, (logits, weights) in zip(examples, answers, strict=True):
            alone = predictor.predict(image=example.image, audio=example.audio, text=example.text)
            assert bundle.info.labels[logits.argmax()] == alone.label
            assert softmax(logits).max() == pytest.approx(alone.confidence, abs=1e-6)
            np.testing.assert_allclose(weights, list(alone.weights.values()), atol=1e-6)


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize(("concurrency", "batch"), [(1, 1), (3, 4)])
def test_what_was_asked_is_what_is_counted(tiny, repository, protocol, concurrency, batch):
    with SERVE[protocol](repository) as url:
        told = measure(
            tiny.bundle, tiny.manifest, url=url, protocol=protocol, concurrency=concurrency, batch=batch, requests=20
        )

    assert (told["accuracy"], told["n"]) == (1.0, 12)
    assert (told["protocol"], told["concurrency"], told["batch"], told["requests"]) == (
        protocol,
        concurrency,
        batch,
        20,
    )
    assert 0 < told["latency_ms"]["p50"] <= told["latency_ms"]["p90"] <= told["latency_ms"]["p99"]
    assert told["rows_per_s"] > 0
    # every line once for the accuracy, each worker once to connect, then those that are timed
    assert repository.asked.count("tiny") == 12 // batch + concurrency + 20


def test_a_batch_that_the_server_does_not_take_is_one_line(tiny, repository):
    with serve_grpc(repository) as url, pytest.raises(BackendError, match="batch-size must be <= 4") as refused:
        measure(tiny.bundle, tiny.manifest, url=url, batch=5)

    assert "\n" not in str(refused.value)


def test_a_model_that_is_not_there_is_said(tiny, repository):
    with serve_http(repository) as url, pytest.raises(BackendError, match=r"no answer of other at .* is not found"):
        measure(tiny.bundle, tiny.manifest, url=url, protocol="http", model="other")


def test_a_worker_that_fails_ends_the_others(tiny, repository, monkeypatch):
    calls = []

    class Failing(Server):
        def ask(self, tensors):
            calls.append(1)
            if len(calls) == 14:  # 12 lines for the accuracy, then the workers connect
                raise BackendError("the second worker lost its server")
            return super().ask(tensors)

    monkeypatch.setattr(triton_client, "Server", Failing)
    with serve_grpc(repository) as url, pytest.raises(BackendError, match="the second worker lost"):
        measure(tiny.bundle, tiny.manifest, url=url, concurrency=3)


@pytest.mark.parametrize("option", ["concurrency", "batch", "requests", "limit"])
def test_nothing_is_less_than_one(tiny, option):
    with pytest.raises(OptionError, match=f"--{option}: found 0, it must be 1 or more"):
        measure(tiny.bundle, tiny.manifest, **{option: 0})


def test_without_the_client_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'edgefuse\[triton\]'"):
        Server("localhost:1", "grpc", "tiny")


@pytest.mark.parametrize("protocol", PORTS)
def test_without_a_server_it_is_one_line_and_exit_1(tiny, protocol):
    script = Path(triton_client.__file__)
    url = f"127.0.0.1:{free_port()}"
    command = [sys.executable, script, tiny.bundle, tiny.manifest, "--url", url, "--protocol", protocol]

    found = subprocess.run(command, capture_output=True, text=True, check=False)

    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith(f"triton_client: no answer of tiny at {url}: ")
    assert len(found.stderr.splitlines()) == 1
