"""Spoken easy-VQA: the package's own counts, and nothing of the test that training has seen or heard."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import easy_vqa
import pytest

from edgefuse.runtime.errors import MissingExtraError
from edgefuse.runtime.manifest import Example, label_names, read_manifest
from edgefuse.runtime.media import decode_audio, decode_image
from edgefuse.train import corpora, spoken
from edgefuse.train.corpora import answer_type
from edgefuse.train.speech import Espeak, Voice
from edgefuse.train.spoken import FLITE_MANIFEST, MANIFEST
from edgefuse.train.voices import TEST_VARIANTS, VAL_VARIANTS

OFFICIAL = {"train": 38_575, "test": 9_673}  # questions, as the package's page says
SENTENCES = 107


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole corpus, but in few voices: 2 for training, 1 for validation, 2 for the test, 1 of flite."""
    out = tmp_path_factory.mktemp("easy_vqa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoken, "VAL_VARIANTS", VAL_VARIANTS[:1])
        patch.setattr(spoken, "TEST_VARIANTS", TEST_VARIANTS[:2])
        patch.setattr(spoken, "flite_voices", lambda: ("slt",) if shutil.which("flite") else ())
        said = corpora.easy_vqa(out, voices=2)
    voices = 5 + (shutil.which("flite") is not None)
    assert said["lines"] == sum(OFFICIAL.values())
    assert said["sounds"] == SENTENCES * voices == len(list((out / "sounds").rglob("*.wav")))
    assert said["manifests"][0] == str(out / MANIFEST)
    return out


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[Example]:
    return read_manifest(corpus / MANIFEST)


def test_it_has_the_official_counts(lines: list[Example]) -> None:
    splits = Counter(line.split for line in lines)
    assert splits["test"] == OFFICIAL["test"]
    assert splits["train"] + splits["val"] == OFFICIAL["train"]
    assert splits["val"] == pytest.approx(OFFICIAL["train"] / corpora.VAL_EVERY, rel=0.1)
    pictures = {split: {line.image for line in lines if line.split == split} for split in splits}
    assert (len(pictures["train"]), len(pictures["val"]), len(pictures["test"])) == (3800, 200, 1000)


def test_the_questions_and_answers_are_those_of_the_package(lines: list[Example]) -> None:
    pictures, (texts, answers, ids) = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
    test = [line for line in lines if line.split == "test"]
    assert [(line.text, line.label) for line in test] == list(zip(texts, answers, strict=True))
    for line, picture in list(zip(test, ids, strict=True))[::500]:
        assert Path(str(line.image)).read_bytes() == Path(pictures[picture]).read_bytes()
    assert label_names(lines) == tuple(sorted(easy_vqa.get_answers()))


def test_no_picture_and_no_voice_of_one_split_is_in_another(lines: list[Example]) -> None:
    for sensor, key in (("image", lambda path: path), ("audio", lambda path: Path(path).parent.name)):
        seen = {s: {key(getattr(line, sensor)) for line in lines if line.split == s} for s in ("train", "val", "test")}
        assert not seen["train"] & seen["val"]
        assert not seen["train"] & seen["test"]
        assert not seen["val"] & seen["test"]


def test_a_sound_speaks_the_text_of_its_line_and_every_training_voice_is_used(lines: list[Example]) -> None:
    spoken: dict[str, set[str | None]] = {}
    for line in lines:
        spoken.setdefault(Path(str(line.audio)).stem, set()).add(line.text)
    assert len(spoken) == SENTENCES
    assert all(len(texts) == 1 for texts in spoken.values())
    voices = Counter(Path(str(line.audio)).parent.name for line in lines if line.split == "train")
    assert sorted(voices) == ["train000", "train001"]
    assert max(voices.values()) < 1.05 * min(voices.values())


def test_pictures_and_sounds_can_be_decoded(lines: list[Example]) -> None:
    for line in lines[::5000]:
        assert decode_image(Path(str(line.image)).read_bytes(), "picture").shape == (64, 64, 3)
        pcm, rate = decode_audio(Path(str(line.audio)).read_bytes(), "sound")
        assert rate == 16_000
        assert 0.5 < len(pcm) / rate < 4


def test_answer_types_follow_from_the_answers(lines: list[Example]) -> None:
    types = {answer: kind for line in lines if (answer := line.label) and (kind := line.answer_type)}
    assert Counter(types.values()) == {"yes/no": 2, "shape": 3, "color": 8}
    assert all(answer_type(answer) == kind for answer, kind in types.items())


@pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed (apt-get install flite)")
def test_the_flite_manifest_asks_the_test_questions_in_other_voices(corpus: Path, lines: list[Example]) -> None:
    flite = read_manifest(corpus / FLITE_MANIFEST)
    test = [line for line in lines if line.split == "test"]
    assert [(f.text, f.label, f.image, f.split) for f in flite] == [(t.text, t.label, t.image, "test") for t in test]
    assert {Path(str(line.audio)).parent.name for line in flite} == {"flite000"}


def test_a_second_call_speaks_and_copies_nothing_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (corpus / MANIFEST).read_bytes()
    lost = corpus / "sounds" / "train001" / "042.wav"
    lost.unlink()
    heard: list[str] = []
    speak = Espeak.speak

    def listen(self: Espeak, text: str, voice: Voice) -> object:
        heard.append(text)
        return speak(self, text, voice)

    monkeypatch.setattr(Espeak, "speak", listen)
    monkeypatch.setattr(spoken, "VAL_VARIANTS", VAL_VARIANTS[:1])
    monkeypatch.setattr(spoken, "TEST_VARIANTS", TEST_VARIANTS[:2])
    monkeypatch.setattr(spoken, "flite_voices", lambda: ())
    corpora.easy_vqa(corpus, voices=2)
    assert len(heard) == 1
    assert lost.exists()
    assert (corpus / MANIFEST).read_bytes() == before


def test_without_the_package_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(MissingExtraError, match=r"this corpus needs easy-vqa: pip install 'edgefuse\[demo\]'"):
        corpora.easy_vqa(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_line_is_plain_json_with_relative_paths(corpus: Path) -> None:
    row = json.loads((corpus / MANIFEST).read_text().splitlines()[0])
    assert set(row) == {"image", "audio", "text", "label", "split", "answer_type"}
    assert re.fullmatch(r"images/train_\d+\.png", row["image"])
    assert re.fullmatch(r"sounds/(train|val)\d{3}/\d{3}\.wav", row["audio"])
