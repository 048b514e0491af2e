"""edgefuse init: a recipe that trains as it is, fitted to the data, and nothing overwritten."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from edgefuse.runtime import verbs
from edgefuse.runtime.cli import main
from edgefuse.runtime.errors import ManifestError, MediaError, OptionError
from edgefuse.runtime.manifest import read_manifest
from edgefuse.train.init import NO_DEFAULT, fit_to, init
from edgefuse.train.recipe import load_recipe
from edgefuse.train.train import train
from tests.train_fixtures import SECONDS, corpus, write_manifest


def test_a_recipe_without_data_reads_the_sensors_that_were_asked_for(tmp_path: Path) -> None:
    told = init(tmp_path / "mine", "text+image")
    recipe = load_recipe(told["recipe"], [])
    assert (recipe.name, recipe.modalities, told["sensors"]) == ("mine", ("image", "text"), "image+text")
    assert recipe.data.manifest == str(tmp_path / "mine" / "manifest.jsonl")
    assert recipe.data.group_by is None
    assert load_recipe(init(tmp_path / "usual")["recipe"], []).modalities == ("image", "audio", "text")


def test_a_recipe_is_fitted_to_the_data_and_trains_as_it_is(tmp_path: Path) -> None:
    told = init(tmp_path / "mine", None, corpus())
    recipe = load_recipe(told["recipe"], [])
    assert recipe.data.manifest == str(corpus())
    assert recipe.image is not None
    assert recipe.audio is not None
    assert recipe.text is not None
    assert (recipe.image.height, recipe.image.width) == (64, 64)  # 48 in whole cells of 32
    assert recipe.audio.seconds == SECONDS
    assert recipe.text.max_tokens == 8  # 4 words and what WordPiece adds
    assert recipe.data.group_by == "image"
    nano = ["audio.encoder=conformer_nano", "text.encoder=distilbert_nano"]
    run = train(told["recipe"], ["train.epochs=1", "data.groups_per_step=8", *nano], tmp_path / "run")
    assert set(run["accuracy"]) == {"image+audio+text"}


def test_sizes_and_lengths_follow_the_files(tmp_path: Path) -> None:
    rows = []
    for number, (side, seconds) in enumerate(((100, 0.31), (100, 0.31), (3000, 0.31))):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((side, 500, 3), np.uint8))
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(round(8_000 * seconds)), 8_000)
        rows.append({"image": f"{number}.png", "audio": f"{number}.wav", "text": "one two " * 10, "label": "a"})
    (tmp_path / "s.csv").write_text("time, speed\n0,1\n")
    rows.append({"signal": "s.csv", "label": "a"})
    fitted = fit_to(read_manifest(write_manifest(tmp_path / "m.jsonl", rows)))
    assert fitted == {
        "image": {"height": 128, "width": 224},
        "audio": {"seconds": pytest.approx(0.4)},
        "text": {"max_tokens": 32},
        "data": {},
        "signal": {**NO_DEFAULT["signal"], "features": ["time", "speed"]},
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n1,2\n", "the first line must give every column a name of its own"),
        (b"speed,speed\n1,2\n", "the first line must give every column a name of its own"),
        (b"speed,\n1,2\n", "the first line must give every column a name of its own"),
        (b"\xff\xfe,a\n", "not CSV in UTF-8"),
    ],
)
def test_a_signal_without_names_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "s.csv").write_bytes(content)
    manifest = write_manifest(tmp_path / "m.jsonl", [{"signal": "s.csv", "label": "a", "split": "train"}])
    with pytest.raises(MediaError, match=rf"^{tmp_path}/s\.csv:[^\n]*{message}[^\n]*$"):
        init(tmp_path / "mine", manifest=manifest)
    assert not (tmp_path / "mine").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    for name in ("recipe.yaml", "README.md"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(OptionError, match=rf"{name} exists and is not overwritten; choose another folder"):
            init(folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("sensors", "message"),
    [("image+smell", r"names 'smell'; there are image, audio, text, signal"), ("signal", "which no training line has")],
)
def test_a_sensor_that_does_not_exist_or_is_not_in_the_data_is_refused(
    tmp_path: Path, sensors: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        init(tmp_path / "new", sensors, corpus())
    assert not (tmp_path / "new").exists()


def test_data_that_cannot_be_used_is_one_line_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="cannot be read"):
        init(tmp_path / "new", None, tmp_path / "gone.jsonl")
    assert not (tmp_path / "new").exists()


def test_the_readme_has_a_line_of_data_and_commands_that_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init(tmp_path / "mine", "image+audio+text+signal")
    text = (tmp_path / "mine" / "README.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^\{.*\}$", text, flags=re.MULTILINE)
    assert set(json.loads(line)) == {"image", "audio", "text", "signal", "label", "split"}
    monkeypatch.setattr(verbs, "_call", lambda *arguments, **options: {})
    commands = re.findall(r"^edgefuse (.+)$", text, flags=re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["data", "train", "export", "quantize", "eval", "predict"]
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main(shlex.split(command))
        assert not stop.value.code, command


def test_the_verb_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["init", str(tmp_path / "mine"), "--from", str(corpus()), "--sensors", "image+text", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not stop.value.code
    assert told["sensors"] == "image+text"
    assert Path(told["recipe"]).exists()
    assert Path(told["readme"]).exists()
