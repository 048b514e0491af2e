"""A bundle as Triton's model repository: read by Triton's own protobuf, computing what the predictor computes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from edgefuse.optimize import triton
from edgefuse.optimize.triton import export_triton
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle, PartInfo, part_file
from edgefuse.runtime.engines import Sidecar, staged_file, write_sidecar
from edgefuse.runtime.errors import BundleError, EngineError, OptionError
from edgefuse.runtime.preprocess import Preprocessor
from tests.conftest import LABELS, MODALITIES
from tests.test_engine_header import tensorrt

PARTS = (*MODALITIES, HEAD)
PLAN = tensorrt((10, 3, 0, 26)) + b"kernels"


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add_engines(bundle: Bundle, parts: tuple[str, ...] = PARTS) -> Bundle:
    """The bundle with trt parts, which are the fp32 ones, and what stands for engines of them."""
    graphs = {part_file("trt", part): bundle.part("fp32", part) for part in PARTS}
    listed = {part: PartInfo(file=part_file("trt", part), precision="fp16") for part in PARTS}
    bundle = bundle.updated(graphs, parts={**bundle.info.parts, "trt": listed})
    for part in parts:
        staged = staged_file(bundle.folder, "tensorrt", part)
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.write_bytes(PLAN)
        sidecar = Sidecar(
            part=part,
            target="tensorrt",
            tensorrt_version="10.3.0.26",
            sm=(87,),
            batch=(1, 1, 8),
            source_sha256=bundle.info.files[part_file("trt", part)],
            engine_sha256=hashlib.sha256(PLAN).hexdigest(),
            kernels=None,
            bytes_touched=None,
            seconds=1.0,
        )
        write_sidecar(bundle.folder, sidecar)
    return bundle


def test_every_part_becomes_a_model_and_the_bundle_their_ensemble(tiny, tmp_path):
    told = export_triton(tiny.bundle, tmp_path / "models")

    assert told["ensemble"] == "tiny"
    assert [model["model"] for model in told["models"]] == [f"tiny_{part}" for part in PARTS]
    written = content(tmp_path / "models")
    bundle = Bundle.open(tiny.bundle)
    for part in PARTS:
        assert written[f"tiny_{part}/1/model.onnx"] == bundle.part("fp32", part)
    assert written["tiny/labels.txt"].decode().splitlines() == list(LABELS)
    assert written["tiny_head/labels.txt"] == written["tiny/labels.txt"]
    listed = json.loads(written.pop("tiny.json"))["files"]
    assert {path: hashlib.sha256(data).hexdigest() for path, data in written.items()} == listed


def test_tritons_own_protobuf_reads_the_configurations(tiny, tmp_path):
    pytest.importorskip("tritonclient.grpc")
    from tests.triton_server import Repository, type_of

    export_triton(tiny.bundle, tmp_path / "models", max_batch=16)

    configs = Repository(tmp_path / "models").configs  # which checks that the parts fit together
    assert {name: config.max_batch_size for name, config in configs.items()} == dict.fromkeys(configs, 16)
    ensemble = configs["tiny"]
    inputs = {tensor.name: (type_of(tensor), list(tensor.dims)) for tensor in ensemble.input}
    assert inputs == {
        "image": ("UINT8", [8, 8, 3]),
        "audio": ("FP32", [160]),
        "input_ids": ("INT32", [4]),
        "attention_mask": ("INT32", [4]),
        "presence": ("FP32", [3]),
    }
    outputs = {tensor.name: (list(tensor.dims), tensor.label_filename) for tensor in ensemble.output}
    assert outputs == {"logits": ([3], "labels.txt"), "weights": ([3], "")}
    assert not configs["tiny_image"].instance_group


@pytest.mark.parametrize("part_set", ["fp32", "cpu"])
def test_the_ensemble_computes_what_the_parts_do(tiny, tmp_path, part_set):
    pytest.importorskip("tritonclient.grpc")
    from tests.triton_server import Repository

    export_triton(tiny.bundle, tmp_path / "models", part_set=part_set)
    bundle = Bundle.open(tiny.bundle)
    preprocessor = Preprocessor(bundle)
    tensors = preprocessor.prepare("image", preprocessor.decode("image", tiny.media / "red.png"))
    tensors |= preprocessor.empty("audio") | preprocessor.prepare("text", "green")
    presence = np.array([[1, 0, 1]], np.float32)

    repository = Repository(tmp_path / "models")
    found = repository.infer("tiny", {**tensors, "presence": presence})

    with OnnxBackend(bundle, part_set) as backend:
        made = {f"{m}_tokens": backend.run(m, tensors_of(tensors, m))[f"{m}_tokens"] for m in MODALITIES}
        expected = backend.run(HEAD, {**made, "presence": presence})
    np.testing.assert_array_equal(found["logits"], expected["logits"])
    np.testing.assert_array_equal(found["weights"], expected["weights"])


def tensors_of(tensors: dict, modality: str) -> dict:
    names = {"text": ("input_ids", "attention_mask")}.get(modality, (modality,))
    return {name: tensors[name] for name in names}


def test_parts_that_are_made_for_the_cpu_stay_on_it(tiny, tmp_path):
    pytest.importorskip("tritonclient.grpc")
    from tests.triton_server import Repository

    export_triton(tiny.bundle, tmp_path / "models", part_set="cpu")

    config = Repository(tmp_path / "models").configs["tiny_image"]
    assert [config.instance_group[0].Kind.Name(group.kind) for group in config.instance_group] == ["KIND_CPU"]


def test_engines_are_served_as_plans_with_the_tensors_of_their_parts(tiny_copy, tmp_path):
    pytest.importorskip("tritonclient.grpc")
    from tests.triton_server import Repository

    add_engines(tiny_copy)

    told = export_triton(tiny_copy.folder, tmp_path / "models", plans=True)

    assert {model["backend"] for model in told["models"]} == {"tensorrt"}
    assert (tmp_path / "models/tiny_head/1/model.plan").read_bytes() == PLAN
    assert Repository(tmp_path / "models").configs["tiny_image"].backend == "tensorrt"


def test_a_batch_beyond_that_of_the_engines_is_refused(tiny_copy, tmp_path):
    add_engines(tiny_copy)

    with pytest.raises(
        OptionError, match="takes batches up to 8, found --max-batch 9; lower it, or run `edgefuse build"
    ):
        export_triton(tiny_copy.folder, tmp_path / "models", plans=True, max_batch=9)


def test_engines_of_other_parts_than_trt_do_not_exist(tiny, tmp_path):
    with pytest.raises(OptionError, match="found --plans with --part-dir cpu"):
        export_triton(tiny.bundle, tmp_path / "models", plans=True, part_set="cpu")


def test_an_engine_that_is_missing_or_altered_leaves_the_old_repository(tiny_copy, tmp_path):
    export_triton(tiny_copy.folder, tmp_path / "models")
    before = content(tmp_path / "models")
    bundle = add_engines(tiny_copy, parts=PARTS[:-1])

    with pytest.raises(EngineError, match="no tensorrt engine of head"):
        export_triton(bundle.folder, tmp_path / "models", plans=True)

    (bundle.folder / "engines/tensorrt/image.engine").write_bytes(PLAN + b"!")
    with pytest.raises(EngineError, match="altered"):
        export_triton(bundle.folder, tmp_path / "models", plans=True)
    assert content(tmp_path / "models") == before


def test_a_part_that_was_altered_leaves_the_old_repository(tiny_copy, tmp_path):
    export_triton(tiny_copy.folder, tmp_path / "models")
    before = content(tmp_path / "models")
    (tiny_copy.folder / part_file("fp32", HEAD)).write_bytes(b"other")

    with pytest.raises(BundleError, match="was altered"):
        export_triton(tiny_copy.folder, tmp_path / "models")

    assert content(tmp_path / "models") == before


def test_a_full_disk_leaves_the_old_repository(tiny, tmp_path, monkeypatch):
    export_triton(tiny.bundle, tmp_path / "models")
    before = content(tmp_path / "models")
    written = []

    def fills_up(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    monkeypatch.setattr("edgefuse.runtime.files._write_durably", fills_up)
    with pytest.raises(BundleError, match=r"could not be written \(No space left on device\)"):
        export_triton(tiny.bundle, tmp_path / "models", part_set="cpu", max_batch=2)

    assert len(written) == 5
    assert content(tmp_path / "models") == before


def test_what_was_committed_before_a_crash_is_finished_by_the_next_export(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(triton, "finish_commit", lambda *_: None)  # the process dies behind the moment of commit
    export_triton(tiny.bundle, tmp_path / "crashed", max_batch=4)
    monkeypatch.undo()

    export_triton(tiny.bundle, tmp_path / "crashed")
    export_triton(tiny.bundle, tmp_path / "clean")

    assert content(tmp_path / "crashed") == content(tmp_path / "clean")


def test_files_that_are_served_no_more_go_and_other_models_stay(tiny_copy, tmp_path):
    bundle = add_engines(tiny_copy)
    models = tmp_path / "models"
    export_triton(bundle.folder, models, name="other")
    other = content(models)
    (models / "foreign/1").mkdir(parents=True)
    (models / "foreign/config.pbtxt").write_text('name: "foreign"')

    export_triton(bundle.folder, models)
    export_triton(bundle.folder, models, plans=True)

    found = content(models)
    assert not [path for path in found if path.startswith("tiny") and path.endswith(".onnx")]
    assert {path: found[path] for path in other} == other
    assert found["foreign/config.pbtxt"] == b'name: "foreign"'


def test_a_model_without_a_part_loses_its_folder(tiny, tmp_path):
    models = tmp_path / "models"
    export_triton(tiny.bundle, models)
    index = json.loads((models / "tiny.json").read_text())
    for path in ("tiny_gone/config.pbtxt", "tiny_gone/1/model.onnx"):
        (models / path).parent.mkdir(parents=True, exist_ok=True)
        (models / path).write_bytes(b"of an earlier model")
        index["files"][path] = hashlib.sha256(b"of an earlier model").hexdigest()
    (models / "tiny.json").write_text(json.dumps(index))

    export_triton(tiny.bundle, models)

    assert not (models / "tiny_gone").exists()


def test_a_model_of_someone_else_is_not_overwritten(tiny, tmp_path):
    taken = tmp_path / "models/tiny_head/config.pbtxt"
    taken.parent.mkdir(parents=True)
    taken.write_text('name: "tiny_head"')

    with pytest.raises(BundleError, match=r"was not written for tiny\.json, so it stays; give another --name"):
        export_triton(tiny.bundle, tmp_path / "models")

    assert content(tmp_path / "models") == {"tiny_head/config.pbtxt": b'name: "tiny_head"'}


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not what export-triton wrote"),
        ('{"files": 3}', "is not what export-triton wrote"),
        ('{"files": {"../precious": "0"}}', "names files outside"),
        ('{"files": {"/etc/precious": "0"}}', "names files outside"),
    ],
)
def test_an_index_that_is_not_ours_is_refused(tiny, tmp_path, index, message):
    (tmp_path / "precious").write_text("kept")
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.json").write_text(index)

    with pytest.raises(BundleError, match=message):
        export_triton(tiny.bundle, models)

    assert (tmp_path / "precious").read_text() == "kept"
    assert content(models) == {"tiny.json": index.encode()}


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a b", "ä"])
def test_a_name_that_is_no_folder_is_refused(tiny, tmp_path, name):
    with pytest.raises(OptionError, match="give --name"):
        export_triton(tiny.bundle, tmp_path / "models", name=name)

    assert not (tmp_path / "models").exists()


def test_a_part_of_one_batch_only_is_refused(tiny_copy, tmp_path):
    from onnx import load_model_from_string

    model = load_model_from_string(tiny_copy.part("fp32", "audio"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    bundle = tiny_copy.updated({part_file("fp32", "audio"): model.SerializeToString()})

    with pytest.raises(BundleError, match="audio of fp32: audio takes batches of 1 only"):
        export_triton(bundle.folder, tmp_path / "models")


def test_the_verb_writes_the_repository_and_says_what_is_in_it(tiny, tmp_path, run):
    code, out, _ = run("export-triton", tiny.bundle, "--out", tmp_path / "models", "--name", "mine", "--json")

    assert code == 0
    assert json.loads(out.splitlines()[-1])["ensemble"] == "mine"
    assert (tmp_path / "models/mine_text/config.pbtxt").is_file()


def test_a_missing_part_set_is_one_line_and_exit_1(tiny, tmp_path, run):
    code, _, err = run("export-triton", tiny.bundle, "--out", tmp_path / "models", "--part-dir", "trt")

    assert code == 1
    assert "has no trt parts" in err
    assert len(err.splitlines()) == 1
