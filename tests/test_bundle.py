"""The bundle: what it refuses to open or read, and that no crash and no full disk loses what was there."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.runtime.bundle import (
    MODALITIES,
    MODALITY_TABLE,
    Bundle,
    BundleInfo,
    TextSpec,
    TokenSpec,
    token_tensor,
    write_bundle,
)
from edgefuse.runtime.cli import Sensor
from edgefuse.runtime.errors import BundleError
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.run_options import Options

OLD, NEW = {"parts/x.onnx": b"old part", "tokenizer.json": b"old words"}, {"parts/x.onnx": b"new part" * 99}


def info(name: str, **changes) -> BundleInfo:
    part = {"file": "parts/x.onnx", "precision": "fp32"}
    contract = {
        "name": name,
        "labels": ["no", "yes"],
        "text": TextSpec(max_tokens=4),
        "tokens": {"text": TokenSpec(count=1, dim=2)},
        "parts": {"fp32": {"text": part, "head": part}},
    }
    return BundleInfo.model_validate({**contract, **changes})


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    return write_bundle(tmp_path / "bundle", info("old"), OLD)


def edit_contract(bundle: Bundle, **changes) -> None:
    path = bundle.folder / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **changes}))


def content(folder: Path) -> tuple[str, dict[str, bytes]]:
    """Name and verified files of a bundle."""
    opened = Bundle.open(folder)
    return opened.info.name, {name: opened.read(name) for name in opened.info.files}


def test_what_was_written_is_read(bundle):
    assert content(bundle.folder) == ("old", OLD)
    assert bundle.part("fp32", "text") == b"old part"
    assert bundle.size("fp32") == 2 * len(b"old part")


def test_modalities_are_in_the_order_of_the_presence_columns(tiny):
    assert Bundle.open(tiny.bundle).info.modalities == ("image", "audio", "text")


def test_a_modality_is_a_row_that_every_stage_follows():
    assert list(Sensor) == list(MODALITIES)
    for name, row in MODALITY_TABLE.items():
        assert row.spec.__name__ in str(BundleInfo.model_fields[name].annotation)
        assert name in Example.__slots__
        assert row.option in Options.__slots__
        assert token_tensor(name) not in row.tensors


def test_the_contract_does_not_name_modalities_that_the_model_lacks(bundle):
    document = json.loads((bundle.folder / "bundle.json").read_bytes())

    assert set(document) & set(MODALITIES) == {"text"}
    edit_contract(bundle, image=None, audio=None)  # as it was written before there were signals
    assert Bundle.open(bundle.folder).info == bundle.info


def test_a_signal_needs_distinct_names(bundle):
    signal = {"steps": 4, "features": ["speed", "speed"], "rate_hz": 10}
    edit_contract(bundle, signal=signal, tokens={m: {"count": 1, "dim": 2} for m in ("text", "signal")})

    with pytest.raises(BundleError, match="signal: Value error, features has a name twice: speed, speed"):
        Bundle.open(bundle.folder)


def test_an_update_keeps_what_it_does_not_name(bundle):
    updated = bundle.updated(NEW, quality={"accuracy": 0.9})

    assert content(bundle.folder) == ("old", {**OLD, **NEW})
    assert updated.info.quality == Bundle.open(bundle.folder).info.quality == {"accuracy": 0.9}


def test_a_part_set_that_is_dropped_leaves_the_contract(bundle):
    extra = {"cpu": {"text": {"file": "parts/y.onnx", "precision": "fp32"}}}
    write_bundle(bundle.folder, info("old", parts=extra), {"parts/y.onnx": b"y"})

    assert set(Bundle.open(bundle.folder).info.files) == {"parts/y.onnx"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_a_changed_byte_is_refused(tiny_copy, data):
    name = data.draw(st.sampled_from(sorted(tiny_copy.info.files)))
    path = tiny_copy.folder / name
    original = path.read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    path.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])

    with pytest.raises(BundleError, match=r"was altered: sha256 is \w{12}, bundle.json says \w{12}; copy or export"):
        Bundle.open(tiny_copy.folder).read(name)

    path.write_bytes(original)
    assert Bundle.open(tiny_copy.folder).read(name) == original


def test_a_missing_a_cut_and_an_unlisted_file_are_refused(bundle):
    (bundle.folder / "parts/x.onnx").write_bytes(b"old")
    (bundle.folder / "tokenizer.json").unlink()

    with pytest.raises(BundleError, match="was altered"):
        bundle.read("parts/x.onnx")
    with pytest.raises(BundleError, match=r"tokenizer.json cannot be read \(No such file"):
        bundle.read("tokenizer.json")
    with pytest.raises(BundleError, match=r"y.onnx is not part of this bundle; its files are: parts/x.onnx, tokeni"):
        bundle.read("y.onnx")


def test_a_part_set_or_part_that_is_not_there_is_refused(bundle):
    with pytest.raises(BundleError, match="has no trt parts, only: fp32; run `edgefuse quantize`"):
        bundle.part("trt", "head")
    with pytest.raises(BundleError, match="has no image part in fp32, only: text, head"):
        bundle.part("fp32", "image")


def test_a_newer_schema_is_refused(bundle):
    edit_contract(bundle, schema_version=2, unheard_of=True)

    with pytest.raises(BundleError, match="has schema 2, this edgefuse reads up to 1; install a newer edgefuse"):
        Bundle.open(bundle.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "1"}, "no bundle contract: schema_version"),
        ({"unheard_of": 1}, "no bundle contract: unheard_of"),
        ({"labels": []}, "no bundle contract: labels"),
        ({"text": None}, "tokens are given for text, the model takes no modality"),
        ({"image": {"height": 8, "width": 8}}, "tokens are given for text, the model takes image, text"),
        ({"text": {"max_tokens": 0}}, "no bundle contract: text.max_tokens"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused(bundle, changes, message):
    edit_contract(bundle, **changes)

    with pytest.raises(BundleError, match=message) as refusal:
        Bundle.open(bundle.folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["../stolen", "/etc/passwd", "parts/../../stolen", "a\0b"])
@pytest.mark.parametrize("place", ["files", "parts"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle, name, place):
    part = {"file": name, "precision": "fp32"}
    edit_contract(bundle, **{place: {name: "0" * 64} if place == "files" else {"fp32": {"head": part}}})

    with pytest.raises(BundleError, match="outside of the bundle; do not use this bundle"):
        Bundle.open(bundle.folder)


def test_a_journal_cannot_write_outside_of_the_bundle(bundle):
    (bundle.folder.parent / "victim").write_text("intact")
    (bundle.folder.parent / "victim.new").write_text("attack")
    edit_contract(bundle, files={"../victim": "0" * 64})
    (bundle.folder / "bundle.json").rename(bundle.folder / "bundle.json.commit")

    with pytest.raises(BundleError, match="outside of the bundle"):
        Bundle.open(bundle.folder)
    assert (bundle.folder.parent / "victim").read_text() == "intact"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_whatever_bundle_json_holds_there_is_one_clear_line(bundle, junk):
    (bundle.folder / "bundle.json").write_bytes(junk)

    with pytest.raises(BundleError, match=r"bundle\.json") as refusal:
        Bundle.open(bundle.folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_a_bundle_and_a_file_are_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(BundleError, match=r"is not a bundle: no bundle\.json in it; make one with `edgefuse export`"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="Not a directory"):
        Bundle.open(tmp_path / "file")


# A process that dies at its n-th step: before a rename, or in the middle of writing a file.
DIES_AT_STEP = """
import os, stat, sys
from pathlib import Path
from edgefuse.runtime.bundle import Bundle

left = int(sys.argv[2])
def step(is_file_write=None):
    global left
    left -= 1
    if left < 0:
        if is_file_write is not None and stat.S_ISREG(os.fstat(is_file_write).st_mode):
            os.ftruncate(is_file_write, os.fstat(is_file_write).st_size // 2)
        os._exit(9)

fsync, replace = os.fsync, Path.replace
os.fsync = lambda descriptor: (step(descriptor), fsync(descriptor))[1]
Path.replace = lambda path, target: (step(), replace(path, target))[1]
Bundle.open(sys.argv[1]).updated({"parts/x.onnx": b"new part" * 99, "tokenizer.json": b"new words"}, name="new")
"""


def test_a_kill_at_any_step_leaves_the_old_bundle_or_the_new(tmp_path):
    old, new = ("old", OLD), ("new", {**NEW, "tokenizer.json": b"new words"})
    outcomes = []
    for steps in range(100):
        folder = tmp_path / str(steps)
        write_bundle(folder, info("old"), OLD)
        code = subprocess.run([sys.executable, "-c", DIES_AT_STEP, str(folder), str(steps)], check=False).returncode
        outcomes.append(content(folder))
        assert content(folder) == outcomes[-1]  # opening it again changes nothing
        assert not list(folder.rglob("*.commit"))
        write_bundle(folder, info("next"), OLD)
        assert content(folder) == ("next", OLD)
        assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
            "bundle.json",
            "tokenizer.json",
            "x.onnx",
        ]
        if code == 0:
            break
        assert code == 9

    assert code == 0
    commit = outcomes.index(new)
    assert outcomes == [old] * commit + [new] * (len(outcomes) - commit)
    assert 4 < commit < len(outcomes) - 3  # it died both before and after the moment of commit


def test_what_a_dead_write_left_is_not_taken_by_the_next_commit(bundle):
    (bundle.folder / "tokenizer.json.new").write_bytes(b"half of some wo")

    bundle.updated(NEW)

    assert content(bundle.folder) == ("old", {**OLD, **NEW})
    assert not (bundle.folder / "tokenizer.json.new").exists()


@pytest.mark.parametrize("victim", ["parts/x.onnx.new", "tokenizer.json.new", "bundle.json.commit.new"])
def test_a_full_disk_leaves_the_old_bundle(bundle, victim):
    (bundle.folder / victim).symlink_to("/dev/full")  # every write to it fails with "No space left on device"

    with pytest.raises(BundleError, match=r"could not be written \(No space left on device\); free some space"):
        bundle.updated({**NEW, "tokenizer.json": b"new words"}, name="new")

    assert content(bundle.folder) == ("old", OLD)
    assert not list(bundle.folder.rglob("*.new"))


def test_a_bundle_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(BundleError, match=r"could not be written \(Not a directory\)"):
        write_bundle(tmp_path / "file/bundle", info("new"), NEW)


def test_an_unfinished_write_on_a_read_only_disk_is_one_clear_line(bundle, monkeypatch):
    (bundle.folder / "bundle.json").rename(bundle.folder / "bundle.json.commit")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(BundleError, match=r"unfinished write that cannot be finished \(Read-only file system\)"):
        Bundle.open(bundle.folder)
