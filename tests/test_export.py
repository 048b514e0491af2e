"""Export: every part is what torch computes, whatever the batch and the fusion, and TensorRT-RTX takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from edgefuse.optimize import export as module
from edgefuse.optimize.export import (
    MAX_ABS_ERROR,
    OPSET,
    HeadPart,
    _largest_error,
    _to_onnx,
    _with_gaps,
    export,
    torch_parts,
)
from edgefuse.runtime.backend_onnx import OnnxBackend, open_session, run_session
from edgefuse.runtime.bundle import HEAD, SENSOR_TENSORS, Bundle, part_file
from edgefuse.runtime.errors import BundleError, RecipeError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.runtime.predictor import Predictor
from edgefuse.train import train as training
from edgefuse.train.data import Batch, Loader
from edgefuse.train.fusion import FUSIONS
from edgefuse.train.image_nets import CellLayers
from edgefuse.train.model import Head
from edgefuse.train.recipe import FusionSettings
from edgefuse.train.runs import RUN_FILE, Run
from edgefuse.train.train import train
from edgefuse.train.wordpiece import learn_wordpiece
from tests.conftest import MODALITIES
from tests.train_fixtures import QUESTIONS, corpus, trained_run, write_recipe

ROOT = Path(__file__).parent.parent
DIMS, LABELS = {"image": 12, "audio": 10, "text": 6}, 5
COUNTS = {"pooled": dict.fromkeys(DIMS, 1), "all": {"image": 4, "audio": 7, "text": 8}}

PLAIN = {"subsets": {}, "group_by": None}

PARSE = """
import json, sys
from pathlib import Path
from edgefuse.optimize.compiler import parser_errors
from edgefuse.runtime.trt_package import use_package
trt = use_package("tensorrt-rtx")
from edgefuse.optimize.trt_callbacks import Logger
logger = Logger()
builder = trt.Builder(logger)
for path in sys.argv[1:]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(Path(path).read_bytes())
    why = parser_errors([parser.get_error(i) for i in range(parser.num_errors)])
    outputs = [network.get_output(i).name for i in range(network.num_outputs)]
    print(json.dumps([Path(path).stem, parsed, "" if parsed else why, outputs]))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    """The bundle of the trained run, and what `export` said; read only."""
    said = export(trained_run(), tmp_path_factory.mktemp("exported") / "bundle")
    return Bundle.open(said["bundle"]), said


@pytest.fixture(scope="module")
def heads() -> dict[tuple[str, str], tuple[HeadPart, bytes]]:
    """For every fusion, over pooled and over all tokens: the module and its graph."""
    made = {}
    for kind in FUSIONS:
        for tokens in COUNTS:
            part = head_part(kind)
            given = head_inputs(tokens, np.ones((2, 3)))
            made[kind, tokens] = (part, _to_onnx(part, given, ("logits", "weights")))
    return made


def head_part(kind: str) -> HeadPart:
    """A head with random placeholders, as the part that is exported."""

    class Model(nn.Module):
        modalities = MODALITIES

        def __init__(self) -> None:
            super().__init__()
            self.head = Head(DIMS, LABELS, FusionSettings(kind=kind, dim=8, hidden=16))

    torch.manual_seed(0)
    model = Model()
    for placeholder in model.head.placeholder.values():
        nn.init.normal_(placeholder)
    return HeadPart(model).eval()  # type: ignore[arg-type]


def head_inputs(tokens: str, presence: NDArray[Any]) -> dict[str, Tensor]:
    """Random tokens for each line of `presence` [B, M]."""
    generator = torch.Generator().manual_seed(len(presence))
    counts = COUNTS[tokens]
    inputs = {f"{m}_tokens": torch.randn(len(presence), counts[m], DIMS[m], generator=generator) for m in DIMS}
    return {**inputs, "presence": torch.tensor(presence, dtype=torch.float32)}


def untrained_run(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Path:
    """A finished run without a step: the loop is left out."""
    monkeypatch.setattr(training, "fit", lambda *_: {"image+text": 0.5})
    folder.mkdir(exist_ok=True)
    train(str(write_recipe(folder / "tiny.yaml", **changes)), [], folder / "run")
    return folder / "run"


def unseen_lines(run: Run, count: int) -> Batch:
    """Lines of the test split, which the export never looked at."""
    lines = read_manifest(corpus(), split="test", limit=count)
    loader = Loader(run.recipe, run.labels, run.text_tokenizer())
    return loader.batch(lines, [line.audio for line in lines], [set(run.recipe.modalities)] * len(lines))


def run_part(model: bytes, inputs: dict[str, Tensor]) -> list[NDArray[np.float32]]:
    return list(open_session(model).run(None, {name: value.numpy() for name, value in inputs.items()}))


@pytest.mark.parametrize("count", [1, 5])
def test_each_part_is_what_torch_computes_for_any_batch(exported: tuple[Bundle, dict[str, Any]], count: int) -> None:
    bundle, run = exported[0], Run.open(trained_run())
    model, batch = run.trained_model(), unseen_lines(run, count)
    tokens: dict[str, Tensor] = {}
    with torch.no_grad():
        for m in model.modalities:
            inputs = {name: batch.inputs[name][batch.index[m]] for name in SENSOR_TENSORS[m]}
            tokens[m] = model.encode(m, inputs)
            (found,) = run_part(bundle.part("fp32", m), inputs)
            assert found.shape == (count, bundle.info.tokens[m].count, bundle.info.tokens[m].dim)
            np.testing.assert_allclose(found, tokens[m].numpy(), atol=MAX_ABS_ERROR)
        for presence in ([1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]):
            there = torch.tensor([presence] * count)
            expected = model.head(tokens, there)
            given = {**{f"{m}_tokens": value for m, value in tokens.items()}, "presence": there}
            for found, wanted in zip(run_part(bundle.part("fp32", HEAD), given), expected, strict=True):
                np.testing.assert_allclose(found, wanted.numpy(), atol=MAX_ABS_ERROR)


def test_the_bundle_answers_as_the_trained_model_does(exported: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, run = exported[0], Run.open(trained_run())
    model, line = run.trained_model(), read_manifest(corpus(), split="test", limit=1)[0]
    batch = unseen_lines(run, 1)
    with torch.no_grad():
        logits, weights = model(batch.inputs, torch.tensor([[1.0, 0.0, 1.0]]))
    with OnnxBackend(bundle) as backend:
        answer = Predictor(bundle, backend).predict(image=line.image, text=line.text)
    confidence, number = logits.softmax(dim=1)[0].max(dim=0)
    assert answer.label == run.labels[int(number)]
    assert answer.confidence == pytest.approx(float(confidence), abs=1e-4)
    assert list(answer.weights.values()) == pytest.approx(weights[0].tolist(), abs=1e-4)


def test_the_contract_says_what_was_exported(exported: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, said = exported
    info, document = bundle.info, json.loads((trained_run() / RUN_FILE).read_bytes())
    assert info.modalities == MODALITIES
    assert (info.labels, info.name) == (("blue", "green", "no", "red", "yes"), "tiny")
    assert info.image is not None
    assert (info.image.height, info.image.width) == (32, 32)
    assert info.audio is not None
    assert (info.audio.sample_rate, info.audio.samples) == (16_000, 8_000)
    assert info.text is not None
    assert info.text.max_tokens == 8
    assert bundle.read("tokenizer.json") == (trained_run() / "tokenizer.json").read_bytes()
    assert info.lineage["manifest"] == str(corpus())
    assert info.lineage["data_fingerprint"] == document["data_fingerprint"]
    assert info.quality["torch_validation_accuracy"] == document["accuracy"]
    assert said["bytes"] == {part: len(bundle.part("fp32", part)) for part in (*MODALITIES, HEAD)}
    assert 0 < said["max_abs_error"] <= MAX_ABS_ERROR
    assert said["samples"] == 9  # all that validation has


def test_every_graph_has_opset_18_named_tensors_and_a_free_batch(exported: tuple[Bundle, dict[str, Any]]) -> None:
    for part in (*MODALITIES, HEAD):
        model = onnx.load_from_string(exported[0].part("fp32", part))
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
        tokens = {f"{m}_tokens" for m in MODALITIES}
        inputs = {"presence", *tokens} if part == HEAD else set(SENSOR_TENSORS[part])
        assert {value.name for value in model.graph.input} == inputs
        outputs = ["logits", "weights"] if part == HEAD else [f"{part}_tokens"]
        assert [value.name for value in model.graph.output] == outputs
        for value in (*model.graph.input, *model.graph.output):
            first, *others = value.type.tensor_type.shape.dim
            assert first.dim_param
            assert all(dim.dim_value > 0 for dim in others)


def assert_pixels_are_cast_first(model: bytes) -> None:
    graph = onnx.load_from_string(model).graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert (graph.node[0].op_type, list(graph.node[0].input)) == ("Cast", ["image"])
    assert [node.op_type for node in graph.node if "image" in node.input] == ["Cast"]


def test_pixels_are_cast_first_and_ids_come_as_int32(exported: tuple[Bundle, dict[str, Any]]) -> None:
    assert_pixels_are_cast_first(exported[0].part("fp32", "image"))
    text = onnx.load_from_string(exported[0].part("fp32", "text")).graph
    assert {value.type.tensor_type.elem_type for value in text.input} == {onnx.TensorProto.INT32}


def test_no_graph_tells_where_it_was_made(exported: tuple[Bundle, dict[str, Any]]) -> None:
    traces = [str(ROOT), str(Path.home()), sys.prefix, sys.base_prefix, "site-packages", ".py", 'File "', "/tmp/"]
    for part in (*MODALITIES, HEAD):
        model = onnx.load_from_string(exported[0].part("fp32", part))
        for weight in model.graph.initializer:
            weight.ClearField("raw_data")  # in megabytes of numbers any three letters stand somewhere
        data = model.SerializeToString()
        assert not [trace for trace in traces if len(trace) > 2 and trace.encode() in data]


def test_the_front_end_is_plain_convolution_and_matrix_arithmetic(exported: tuple[Bundle, dict[str, Any]]) -> None:
    operators = {node.op_type for node in onnx.load_from_string(exported[0].part("fp32", "audio")).graph.node}
    assert not operators & {
        "STFT",
        "DFT",
        "GridSample",
        "RandomNormalLike",
        "RandomUniformLike",
        "Loop",
        "If",
        "NonZero",
    }


@pytest.mark.parametrize("tokens", COUNTS)
@pytest.mark.parametrize("kind", FUSIONS)
def test_every_fusion_exports_over_pooled_and_all_tokens(
    heads: dict[tuple[str, str], tuple[HeadPart, bytes]], kind: str, tokens: str
) -> None:
    part, graph = heads[kind, tokens]
    patterns = np.array([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    for presence in (patterns, patterns[1:2]):
        given = head_inputs(tokens, presence)
        with torch.no_grad():
            expected = part(*given.values())
        for found, wanted in zip(run_part(graph, given), expected, strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), atol=1e-5)


def test_the_same_module_gives_the_same_bytes(heads: dict[tuple[str, str], tuple[HeadPart, bytes]]) -> None:
    part, graph = heads["gated", "pooled"]
    assert _to_onnx(part, head_inputs("pooled", np.ones((2, 3))), ("logits", "weights")) == graph


def test_a_model_over_all_tokens_and_fewer_sensors_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(
        tmp_path,
        monkeypatch,
        data={"subsets": {}},
        image={"tokens": "all", "height": 64},
        audio={"tokens": "all"},
        text=None,
        fusion={"kind": "attention"},
    )
    said = export(run, tmp_path / "bundle")
    bundle = Bundle.open(said["bundle"])
    assert_pixels_are_cast_first(bundle.part("fp32", "image"))
    assert {m: (spec.count, spec.dim) for m, spec in bundle.info.tokens.items()} == {
        "image": (2, CellLayers.DIM),
        "audio": (12, 96),
    }
    assert not (tmp_path / "bundle" / "tokenizer.json").exists()


def test_a_distilbert_from_a_folder_is_trained_and_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bert"
    torch.manual_seed(3)
    pieces = learn_wordpiece([*QUESTIONS, "words that only the pretraining had"], 200)
    size = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 12}
    DistilBertModel(DistilBertConfig(vocab_size=pieces.get_vocab_size(), **size)).save_pretrained(folder)
    pieces.save(str(folder / "tokenizer.json"))
    text = {"encoder": str(folder), "tokenizer": str(folder), "max_tokens": 12}
    run = untrained_run(tmp_path, monkeypatch, data=PLAIN, audio=None, image=None, text=text)
    bundle = Bundle.open(export(run, tmp_path / "bundle")["bundle"])
    assert (bundle.info.tokens["text"].dim, bundle.info.tokens["text"].count) == (24, 1)
    pretrained = DistilBertModel.from_pretrained(folder).eval()
    ids = torch.tensor([pieces.encode("is it blue").ids])
    with torch.no_grad():
        expected = pretrained(input_ids=ids).last_hidden_state.mean(dim=1)
    padded = torch.nn.functional.pad(ids, (0, 12 - ids.shape[1])).int()
    (found,) = run_part(bundle.part("fp32", "text"), {"input_ids": padded, "attention_mask": (padded > 0).int()})
    np.testing.assert_allclose(found[:, 0], expected.numpy(), atol=1e-5)


def test_one_validation_line_is_enough(tmp_path: Path) -> None:
    part = head_part("gated")
    graph = _to_onnx(part, head_inputs("pooled", np.ones((1, 3))), ("logits", "weights"))
    assert len(run_part(graph, head_inputs("pooled", np.ones((3, 3))))[0]) == 3


def test_the_samples_lack_each_sensor_in_turn_and_never_all() -> None:
    assert _with_gaps(torch.ones(5, 3)).tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert _with_gaps(torch.tensor([[1.0, 0.0]] * 3)).tolist() == [[1, 0]] * 3
    assert _with_gaps(torch.ones(3, 1)).tolist() == [[1]] * 3


def change_outputs(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> None:
    """Let ONNX Runtime compute something else from now on."""

    def run_otherwise(session: Any, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {name: change(array) for name, array in run_session(session, inputs).items()}

    monkeypatch.setattr(module, "run_session", run_otherwise)


@pytest.mark.parametrize("change", [lambda x: x + 2 * MAX_ABS_ERROR, lambda x: x * np.nan], ids=["off", "nan"])
def test_a_part_that_computes_something_else_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    run = untrained_run(tmp_path, monkeypatch, data=PLAIN, audio=None, image=None)
    change_outputs(monkeypatch, change)
    with pytest.raises(BundleError, match=r"part text: ONNX Runtime differs from torch by .*; nothing was written"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_failed_export_leaves_the_bundle_before(
    exported: tuple[Bundle, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(exported[0].folder, tmp_path / "bundle")
    run = untrained_run(tmp_path, monkeypatch, data=PLAIN, audio=None, image=None)
    change_outputs(monkeypatch, np.negative)
    with pytest.raises(BundleError, match="nothing was written"):
        export(run, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.info == exported[0].info
    assert all(bundle.read(name) for name in bundle.info.files)


def test_any_output_that_is_not_a_number_is_found(heads: dict[tuple[str, str], tuple[HeadPart, bytes]]) -> None:
    part, graph = heads["gated", "pooled"]
    tensors = head_inputs("pooled", np.ones((2, 3)))
    with torch.no_grad():
        logits, weights = part(*tensors.values())
    found = dict(zip(("logits", "weights"), run_part(graph, tensors), strict=True))
    assert _largest_error(HEAD, found, {"logits": logits, "weights": weights}) < 1e-5
    with pytest.raises(BundleError, match="differs from torch by nan"):
        _largest_error(HEAD, found, {"logits": logits, "weights": weights * torch.nan})


def test_torch_runs_part_by_part_as_a_session_does(exported: tuple[Bundle, dict[str, Any]]) -> None:
    bundle, parts = exported[0], torch_parts(trained_run(), exported[0].info)
    batch = unseen_lines(Run.open(trained_run()), 3)
    inputs = {name: value.numpy() for name, value in batch.inputs.items()}
    tokens = {}
    for part in MODALITIES:
        given = {name: inputs[name] for name in SENSOR_TENSORS[part]}
        (expected,) = run_part(bundle.part("fp32", part), {name: torch.from_numpy(x) for name, x in given.items()})
        tokens.update(parts[part](given))
        np.testing.assert_allclose(tokens[f"{part}_tokens"], expected, atol=MAX_ABS_ERROR)
    answer = parts[HEAD]({**{name: x[:1] for name, x in tokens.items()}, "presence": np.ones((1, 3), np.float32)})
    assert {name: value.shape for name, value in answer.items()} == {"logits": (1, 5), "weights": (1, 3)}
    other = bundle.info.model_copy(update={"labels": ("yes", "no")})
    with pytest.raises(BundleError, match="makes another model than this bundle; give the run"):
        torch_parts(trained_run(), other)


def test_parts_that_answer_otherwise_in_a_row_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = untrained_run(tmp_path, monkeypatch, data=PLAIN, audio=None, image=None)
    monkeypatch.setattr(module, "MAX_ABS_ERROR", np.inf)
    change_outputs(monkeypatch, np.negative)
    with pytest.raises(BundleError, match="answer 9 of 9 samples unlike torch"):
        export(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_unfinished_run_is_not_exported(tmp_path: Path) -> None:
    shutil.copytree(trained_run(), tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="is not trained to its end"):
        export(tmp_path / "run", tmp_path / "bundle")
    with pytest.raises(RecipeError, match="is not a run"):
        export(tmp_path, tmp_path / "bundle")


def test_validation_lines_without_a_sensor_of_the_model_are_refused(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in corpus().read_text().splitlines()]
    for row in rows:
        row.update({key: str(corpus().parent / row[key]) for key in ("image", "audio")})
        if row["split"] == "val":
            del row["audio"]
    shutil.copytree(trained_run(), tmp_path / "run")
    document = json.loads((tmp_path / "run" / RUN_FILE).read_bytes())
    document["recipe"]["data"]["manifest"] = str(tmp_path / "manifest.jsonl")
    (tmp_path / "run" / RUN_FILE).write_text(json.dumps(document))
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BundleError, match="no validation line has audio, which the model reads"):
        export(tmp_path / "run", tmp_path / "bundle")


def test_tensorrt_rtx_parses_every_part_and_every_fusion(
    exported: tuple[Bundle, dict[str, Any]],
    heads: dict[tuple[str, str], tuple[HeadPart, bytes]],
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    paths = [exported[0].folder / part_file("fp32", part) for part in (*MODALITIES, HEAD)]
    for (kind, tokens), (_, graph) in heads.items():
        paths.append(tmp_path / f"{kind}_{tokens}.onnx")
        paths[-1].write_bytes(graph)
    child = subprocess.run([sys.executable, "-c", PARSE, *map(str, paths)], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    told = [json.loads(line) for line in child.stdout.splitlines()]
    assert [name for name, *_ in told] == [path.stem for path in paths]
    assert [(name, why) for name, parsed, why, _ in told if not parsed] == []
    assert told[0][3] == ["image_tokens"]
    assert all(outputs == ["logits", "weights"] for *_, outputs in told[3:])
