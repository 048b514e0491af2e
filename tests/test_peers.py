"""The race against peers: processes that answer in turns, who falls out and why, what is weighed, which bars hold."""

from __future__ import annotations

import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel, AutoTokenizer

from edgefuse.benchmarks.peers import environments, run
from edgefuse.benchmarks.peers.catalogue import EAGER, ENVIRONMENTS, HUGGING_FACE, OPENVINO_INT8, OURS, PEERS
from edgefuse.benchmarks.peers.contract import SAMPLES, WHOLE, Job, our_host
from edgefuse.benchmarks.peers.environments import NotMeasuredError, described, environment, last_line, weigh
from edgefuse.benchmarks.peers.peer_autogluon import _text_model
from edgefuse.benchmarks.peers.peer_edgefuse import open_peer as open_edgefuse
from edgefuse.benchmarks.peers.peer_onnx import open_peer as open_onnx
from edgefuse.benchmarks.peers.race import Start, first_answers, race
from edgefuse.benchmarks.peers.verdicts import bars, peers_table
from edgefuse.benchmarks.peers.whole_model import calibration_tensors, one_graph
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import predict_once
from edgefuse.runtime.preprocess import Preprocessor


@pytest.fixture(scope="module")
def job(tiny, tmp_path_factory):
    """The tiny bundle with its whole graph and samples, one line a call."""
    made = tmp_path_factory.mktemp("made")
    bundle = Bundle.open(tiny.bundle)
    (made / WHOLE).write_bytes(one_graph(bundle).SerializeToString())
    np.savez(made / SAMPLES, **calibration_tensors(bundle, read_manifest(tiny.manifest)))
    return Job(str(tiny.bundle), str(made), None, str(tiny.manifest), threads=1, batch=1)


def queries_of(tiny, *labels):
    return [
        {"image": str(tiny.media / f"{label}.png"), "audio": str(tiny.media / f"{label}.wav"), "text": label}
        for label in labels
    ]


def start_of(name, log, module="peer_edgefuse", option="cpu"):
    return Start(name, Path(sys.executable), module, option, log / f"{name}.log")


def test_our_parts_and_the_whole_graph_answer_a_batch_as_predict_answers_each(job, tiny):
    queries = [*queries_of(tiny, "red", "blue"), {"image": str(tiny.media / "green.png")}]

    expected = [predict_once(tiny.bundle, **query)["label"] for query in queries]

    labels = Bundle.open(tiny.bundle).info.labels
    for opened in (open_edgefuse("cpu", job), open_onnx(f"onnxruntime:{WHOLE}", job)):
        scores = opened.infer(opened.prepare(queries))
        assert [labels[k] for k in scores.argmax(axis=1)] == expected == ["red", "blue", "green"]


def test_samples_to_calibrate_on_are_what_the_host_makes_of_each_line(job, tiny):
    lines = read_manifest(tiny.manifest)
    expected = our_host(job)([{"image": e.image, "audio": e.audio, "text": e.text} for e in lines])

    with np.load(job.file(SAMPLES)) as samples:
        assert set(samples.files) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(samples[name], array)


def test_peers_are_asked_in_turns_and_one_that_cannot_answer_falls_out_with_its_reason(job, tiny, tmp_path):
    starts = [
        start_of("ours", tmp_path),
        start_of("whole", tmp_path, "peer_onnx", f"onnxruntime:{WHOLE}"),
        start_of("lost", tmp_path, "peer_onnx", "onnxruntime:absent.onnx"),
    ]
    calls = [[query] for query in queries_of(tiny, "red", "blue", "green")]

    times, fallen = race(starts, job, calls, warmup=1)

    assert set(times) == {"ours", "whole"}
    for found in times.values():
        assert [int(np.argmax(answer["scores"][0])) for answer in found.answers] == [0, 1]
        assert all(ms > 0 for ms in found.ms())
        assert found.ms() == pytest.approx(np.add(found.ms("host_ms"), found.ms("model_ms")))
    assert "absent.onnx" in fallen["lost"]
    assert "\n" not in fallen["lost"]


def test_a_first_answer_tells_memory_torch_and_the_sensors_that_may_be_missing(job, tiny, tmp_path):
    told, fallen = first_answers([start_of("ours", tmp_path)], job, queries_of(tiny, "red")[0], runs=1)

    assert not fallen
    assert len(told["ours"]["runs_s"]) == 1
    assert told["ours"]["pss_bytes"] > 10e6
    assert told["ours"]["torch"] is False
    assert told["ours"]["answers_without"] == ["image", "audio", "text"]


def test_without_only_the_big_ones_are_left_out_with_their_reason_and_ours_is_always_in():
    taken, fallen = run.chosen([])
    assert {peer.name for peer in PEERS} - {peer.name for peer in taken} == {
        "AutoGluon MultiModal",
        "Ultralytics YOLO11n-cls",
    }
    assert "GB" in fallen["AutoGluon MultiModal"]

    taken, fallen = run.chosen(["openvino"])
    assert [peer.name for peer in taken] == [OURS, "OpenVINO FP32", OPENVINO_INT8]
    assert fallen[EAGER] == "not asked for"

    with pytest.raises(OptionError, match=r"'tvm' fits no peer.*OpenVINO"):
        run.chosen(["tvm"])


def test_every_peer_has_its_module_and_environments():
    for peer in PEERS:
        assert (Path(run.__file__).parent / f"{peer.module}.py").exists()
        assert {peer.environment, *peer.maker[:1]} <= set(ENVIRONMENTS)


def test_an_environment_is_made_once_and_again_only_for_other_packages(tmp_path, monkeypatch):
    asked = []

    def ran(*command):
        asked.append(command)
        (tmp_path / "venv").mkdir(exist_ok=True)
        return ""

    monkeypatch.setattr(environments, "_run", ran)
    one, other = tmp_path / "edgefuse-1.whl", tmp_path / "edgefuse-2.whl"

    def made(wheel, *packages):
        asked.clear()
        environment(tmp_path / "venv", wheel, "cpu", packages)
        return ["venv" if "venv" in command else "install" for command in asked]

    assert made(one, "a") == ["venv", "install"]
    assert made(one, "a") == []
    assert made(other, "a") == ["install"]
    assert "--no-deps" in asked[0]
    assert made(other, "b") == ["venv", "install"]


def test_an_environment_that_failed_half_way_is_made_again(tmp_path, monkeypatch):
    def fails(*command):
        (tmp_path / "venv").mkdir(exist_ok=True)
        raise NotMeasuredError("no such package")

    monkeypatch.setattr(environments, "_run", fails)
    for _ in range(2):
        with pytest.raises(NotMeasuredError, match="no such package"):
            environment(tmp_path / "venv", tmp_path / "a.whl", "", ["b"])


def test_gpu_libraries_and_byte_code_are_weighed_apart(tmp_path):
    sizes = {
        "torch/lib/libtorch_cpu.so": 1000,
        "torch/lib/libtorch_cuda.so": 500,
        "nvidia/cudnn/lib/libcudnn.so.9": 300,
        "triton/compiler.py": 50,
        "torch/cuda/__init__.py": 7,
        "torch/__pycache__/a.pyc": 90,
    }
    for name, size in sizes.items():
        path = tmp_path / "lib/python3.11/site-packages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)

    found = weigh(tmp_path)

    assert found.installed_bytes == 1857
    assert found.cpu_bytes == 1007


def test_an_environment_tells_the_versions_of_what_was_asked_for_and_of_what_computes(tmp_path):
    for name, version in (("Optimum_ONNX", "0.1.0"), ("torch", "2.9.0"), ("numpy", "2.0.0")):
        held = tmp_path / f"lib/python3.11/site-packages/{name}-{version}.dist-info"
        held.mkdir(parents=True)
        (held / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    found = described(tmp_path, ["optimum-onnx[onnxruntime]", "absent>=5"])

    assert found["versions"] == {"optimum-onnx": "0.1.0", "torch": "2.9.0"}
    assert found["disk"]["installed_bytes"] == found["disk"]["cpu_bytes"] > 0


def test_a_tool_that_takes_too_long_makes_no_model(job, monkeypatch):
    monkeypatch.setattr(run, "LONGEST_S", 0.01)

    with pytest.raises(NotMeasuredError, match=r"not made within 0.01 s"):
        run._make(Path(sys.executable), "makers", ["nncf"], job)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("Collecting a\nERROR: No matching distribution\nhint: x\n", "ERROR: No matching distribution"),
        ("a\n\nKilled\n", "Killed"),
        ("", ""),
    ],
)
def test_the_line_of_a_log_that_says_most(log, line):
    assert last_line(log) == line


def row(*, torch=False, ratio=0.2, cold=1.0, size=100, gpu=0):
    return {
        "latency": {"p50_ms": 4.0, "p90_ms": 5.0},
        "host_ms": 1.0,
        "model_ms": 3.0,
        "ours_over_theirs": {"median": ratio, "interval": [ratio - 0.01, ratio + 0.01]},
        "rows_per_s": 300.0,
        "no_rows_per_s": None,
        "cold_start": {"median_s": cold},
        "pss_bytes": 5e7,
        "torch": torch,
        "answers_without": ["text"],
        "disk": {"installed_bytes": size + gpu, "cpu_bytes": size},
        "accuracy": {"accuracy": 0.9, "interval": [0.88, 0.92], "n": 1000},
        "takes": ["image", "text"],
    }


def test_a_bar_is_reached_missed_or_not_measured():
    rows = {
        OURS: {**row(cold=0.3, size=100), "ours_over_theirs": None},
        EAGER: row(torch=True, ratio=0.2, cold=3.0, size=900, gpu=200),
        OPENVINO_INT8: {**row(ratio=1.1), "rows_per_s": None, "no_rows_per_s": "one at a time only"},
        HUGGING_FACE: {"not_measured": "no wheel | here"},
    }

    verdicts = {(bar["what"], bar["peer"]): bar["reached"] for bar in bars(rows)}

    assert verdicts[("end-to-end latency", EAGER)] is True
    assert verdicts[("end-to-end latency", OPENVINO_INT8)] is False
    assert verdicts[("end-to-end latency", HUGGING_FACE)] is None
    assert verdicts[("cold start", EAGER)] is True
    assert verdicts[("installed size, as pip installs it", EAGER)] is True
    assert verdicts[("installed size, GPU libraries not counted", EAGER)] is False
    assert ("cold start", OPENVINO_INT8) not in verdicts, "it imports no torch"

    table = peers_table(rows)
    assert "not measured: no wheel \\| here" in table
    assert "| 0.20 (0.19-0.21) |" in table
    assert "| not measured: one at a time only |" in table


def test_the_whole_race_leaves_a_row_for_every_peer(tiny, tmp_path, monkeypatch):
    """With this interpreter as every environment: nothing is installed here."""
    labelled = [json.loads(line) for line in tiny.manifest.read_text().splitlines()]
    data = tmp_path / "data"
    shutil.copytree(tiny.media, data)
    lines = [{**line, "split": split} for split in ("train", "test") for line in labelled]
    (data / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(run, "build_wheel", lambda folder: folder / "edgefuse.whl")
    monkeypatch.setattr(run, "environment", lambda *_: Path(sys.executable))
    given = Namespace(
        bundle=tiny.bundle,
        manifest=data / "manifest.jsonl",
        run=None,
        out=tmp_path,
        only=["FP32", "eager"],
        threads=1,
        queries=12,
        warmup=1,
        batch=4,
        batches=2,
        starts=1,
        calibration=4,
        training=1,
    )

    document = run.measure(given)

    rows = document["rows"]
    assert list(rows) == [peer.name for peer in PEERS]
    assert rows["ONNX Runtime FP32"]["accuracy"] == rows[OURS]["accuracy"]
    assert rows[OURS]["accuracy"]["n"] == rows[OURS]["latency"]["n"] == 12
    assert rows[OURS]["accuracy"]["accuracy"] == 1
    assert rows["ONNX Runtime FP32"]["ours_over_theirs"]["n"] == 12
    assert rows[OURS]["rows_per_s"] > 0
    assert "--run" in rows[EAGER]["not_measured"]
    assert "openvino" in rows["OpenVINO FP32"]["not_measured"]
    json.dumps(document, allow_nan=False)


def test_autogluons_text_model_is_read_by_transformers_with_the_pieces_of_the_bundle(job, tmp_path):
    folder = _text_model(replace(job, made=str(tmp_path)))
    reads = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder)
    assert type(model).__name__ == "ElectraModel"
    assert model.config.vocab_size == len(reads)
    assert model.config.pad_token_id == reads.pad_token_id
    tokenizer = Preprocessor(Bundle.open(Path(job.bundle))).tokenizer
    ids, mask = tokenizer.encode(["which color"])
    assert reads("which color")["input_ids"] == ids[0][mask[0] == 1].tolist()
