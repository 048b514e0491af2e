"""The manifest: what a line may say, and one clear line, with its number, for everything else."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.manifest import fingerprint, label_names, read_manifest

GOOD = {"text": "hello", "label": "yes"}


@pytest.fixture
def manifest(tmp_path):
    """A manifest writer: each argument is one line, as an object or as it is."""
    (tmp_path / "a.png").touch()
    (tmp_path / "a.wav").touch()

    def write(*lines, encoding: str = "utf-8"):
        path = tmp_path / "m.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_bytes("\n".join(texts).encode(encoding))
        return path

    return write


def test_a_line_may_have_any_sensors(manifest, tmp_path):
    path = manifest(
        {"image": "a.png", "audio": "a.wav", "text": "t", "label": "x", "split": "val", "answer_type": "kind"},
        {"audio": "a.wav"},
        "",
        {"text": "only", "image": None},
    )

    examples = read_manifest(path)

    assert [example.sensors for example in examples] == [("image", "audio", "text"), ("audio",), ("text",)]
    assert [example.split for example in examples] == ["val", "train", "train"]
    assert (examples[0].image, examples[0].answer_type) == (str(tmp_path / "a.png"), "kind")
    assert [example.where for example in examples] == [f"{path}:1", f"{path}:2", f"{path}:4"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"text": "cut o', r"not a JSON object \(Unterminated string.*; write one object per line"),
        ("[" * 100_000, "not a JSON object"),
        ("[1]", "found list, a line must be a JSON object"),
        ({"label": "yes"}, "no sensor; give at least one of image, audio, text, signal"),
        ({"text": "  ", "label": "yes"}, "text is empty; leave the key out"),
        ({"text": "t", "label": ""}, "label is empty"),
        ('{"text": "\\ud800", "label": "yes"}', "text is not valid Unicode"),
        ({"text": 3, "label": "yes"}, "text is 3, it must be a string"),
        ({"txt": "t", "label": "yes"}, "unknown key 'txt'; did you mean 'text'?"),
        (
            {"qqq": "t", "label": "yes"},
            "unknown key 'qqq'; allowed: image, audio, text, signal, label, split, answer_type",
        ),
        ({"text": "t", "label": "yes", "split": "dev"}, "split 'dev' is unknown; allowed: train, val, test"),
        ({"text": "t", "label": "maybe"}, "label 'maybe'; the model knows: no, yes"),
        ({"text": "t"}, "no label; the model knows: no, yes"),
        ({"image": "gone.png", "label": "yes"}, "image 'gone.png' does not exist in "),
        ({"audio": ".", "label": "yes"}, "audio '.' does not exist in "),
        ({"image": "a\0.png", "label": "yes"}, "does not exist in "),
    ],
)
def test_a_bad_line_in_the_middle_is_named(manifest, bad, message):
    path = manifest(GOOD, GOOD, bad, GOOD)

    with pytest.raises(ManifestError, match=rf"^{path}:3: .*{message}".replace("?", r"\?")) as refusal:
        read_manifest(path, labels=("yes", "no"))
    assert "\n" not in str(refusal.value)


def test_a_bad_line_of_another_split_is_named_too(manifest):
    with pytest.raises(ManifestError, match=":2: "):
        read_manifest(manifest(GOOD, {"split": "test"}), split="train")


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path, manifest):
    with pytest.raises(ManifestError, match=r"gone.jsonl: cannot be read \(No such file or directory\)"):
        read_manifest(tmp_path / "gone.jsonl")
    with pytest.raises(ManifestError, match=r"not UTF-8 \(.* at byte 10\); save it as UTF-8"):
        read_manifest(manifest('{"text": "é"}', encoding="latin-1"))


def test_a_byte_order_mark_windows_line_ends_and_line_separators_in_a_text_do_no_harm(manifest):
    path = manifest('{"text": "a\u2028b"}\r', {"text": "c"}, encoding="utf-8-sig")

    assert [example.text for example in read_manifest(path)] == ["a\u2028b", "c"]


def test_splits_are_chosen_and_an_empty_one_is_refused(manifest):
    path = manifest(*[{"text": name, "split": name} for name in ("train", "val", "val")])

    assert [example.text for example in read_manifest(path, split="val")] == ["val", "val"]
    with pytest.raises(ManifestError, match="no line with split 'test'; splits found: train, val"):
        read_manifest(path, split="test")
    with pytest.raises(ManifestError, match="splits found: none, the file has no lines"):
        read_manifest(manifest(""))


def test_a_limit_takes_lines_at_even_distances(manifest):
    path = manifest(*[{"text": str(number)} for number in range(10)])

    assert [example.text for example in read_manifest(path, limit=5)] == ["0", "2", "4", "6", "8"]
    assert [example.text for example in read_manifest(path, limit=3)] == ["0", "3", "6"]
    assert len(read_manifest(path, limit=99)) == 10


def test_labels_are_sorted_and_named_once(manifest):
    assert label_names(read_manifest(manifest(*[{"text": "t", "label": label} for label in "bab"], {"text": "t"}))) == (
        "a",
        "b",
    )


def test_the_fingerprint_follows_the_content_and_not_the_folder(manifest):
    same = [fingerprint(read_manifest(manifest(GOOD, GOOD))) for _ in range(2)]
    other = fingerprint(read_manifest(manifest(GOOD, {**GOOD, "text": "bye"})))

    assert same[0] == same[1] != other


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text() | st.dictionaries(st.sampled_from(["image", "text", "label", "split", "x"]), st.text() | st.none())
    )
)
def test_any_file_is_read_or_refused_with_its_line(manifest, lines):
    path = manifest(
        *[line.encode("utf-8", "ignore").decode() if isinstance(line, str) else json.dumps(line) for line in lines]
    )

    message = str(path)
    try:
        read_manifest(path)
    except ManifestError as refusal:
        message = str(refusal)

    assert message.startswith(str(path))
    assert "\n" not in message
