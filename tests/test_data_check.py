"""The manifest's checker: its counts are those of plain counting, and every fault that was planted is found."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefuse.runtime.cli import main
from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.manifest import SPLITS, Example
from edgefuse.train.data_check import NO_LABEL, check, count_lines, count_words, find_unseen_labels, spread
from tests.train_fixtures import corpus, write_manifest

RATE = 16_000

names = st.sampled_from(["yes", "no", "<b>", "red"])
texts = st.lists(st.sampled_from(["is", "it", "red"]), min_size=1, max_size=5).map(" ".join)


def example(**values: Any) -> Example:
    return Example(**{"where": "m:1", "image": None, "audio": None, "answer_type": None, **values})


def picture(path: Path, value: int | None = None, seed: int = 0) -> str:
    """A noisy picture, or one of a single grey; returns its name."""
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels if value is None else np.full_like(pixels, value))
    return path.name


def sound(path: Path, loudness: float, seconds: float = 0.5) -> str:
    """A tone, cut off at full scale where its loudness is above 1; returns its name."""
    tone = loudness * np.sin(2 * np.pi * 440 * np.arange(round(RATE * seconds)) / RATE)
    soundfile.write(path, tone.clip(-1, 1), RATE, subtype="PCM_16")
    return path.name


def kinds(result: dict[str, Any]) -> dict[str, list[str]]:
    """Kind of finding -> what it is about."""
    found: dict[str, list[str]] = {}
    for finding in result["findings"]:
        about = finding["where"] if finding["path"] is None else Path(finding["path"]).name
        found.setdefault(finding["what"], []).append(about)
    return found


@given(st.lists(st.tuples(names | st.none(), st.sampled_from(SPLITS), texts | st.none()), min_size=1))
@settings(deadline=None)
def test_lines_are_counted_as_a_counter_counts_them(rows: list[tuple[str | None, str, str | None]]) -> None:
    lines = [
        example(label=label, split=split, text=text, image=None if text else "a.png") for label, split, text in rows
    ]
    told = count_lines(lines)
    pairs = Counter((label or NO_LABEL, split) for label, split, _ in rows)
    assert {(n, s): c for n, row in told["labels"].items() for s, c in row.items() if c} == dict(pairs)
    for split, row in told["splits"].items():
        counts = [count for (_, s), count in pairs.items() if s == split]
        assert (row["lines"], row["labels"]) == (sum(counts), len(counts))
        assert row["largest_label"] == max(counts) / sum(counts)
        assert row["largest_to_smallest"] == max(counts) / min(counts)
    assert told["sensors"] == dict(Counter("text" if text else "image" for _, _, text in rows))
    lengths = sorted(len(text.split()) for _, _, text in rows if text)
    words = count_words(lines)
    assert (words["lines"], words["distinct"]) == (len(lengths), len({text for _, _, text in rows if text}))
    if lengths:
        assert (words["words"]["least"], words["words"]["most"]) == (lengths[0], lengths[-1])
        assert words["words"]["median"] == statistics.median(lengths)


@given(st.lists(st.floats(0, 1e6), min_size=2))
def test_the_spread_of_values_is_that_of_the_statistics_module(values: list[float]) -> None:
    told = spread(values)
    assert told["median"] == pytest.approx(statistics.median(values))
    assert told["p95"] == pytest.approx(statistics.quantiles(values, n=20, method="inclusive")[-1])


@given(st.lists(st.tuples(names, st.sampled_from(SPLITS))))
def test_labels_that_training_never_sees_are_those_of_the_set_difference(rows: list[tuple[str, str]]) -> None:
    found = find_unseen_labels([example(label=label, split=split, text="x") for label, split in rows])
    trained = {label for label, split in rows if split == "train"}
    expected = Counter(label for label, _ in rows if label not in trained)
    assert {finding.detail: finding.lines for finding in found} == {repr(k): n for k, n in expected.items()}


def test_a_sound_corpus_is_ok_and_each_file_counts_once() -> None:
    told = check(corpus())
    assert (told["verdict"], told["lines"], told["unreadable"], told["found"]) == ("ok", 42, [], {})
    assert told["pictures"] == {"files": 14, "distinct": 14, "sizes": {"48x48": 14}}
    assert told["sounds"]["rates"] == {"16000 Hz": told["sounds"]["files"]}
    assert told["sounds"]["seconds"]["most"] == 0.5
    assert told["sensors"] == {"image+audio+text": 42}


def test_every_unreadable_file_and_every_bad_line_is_listed(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png")
    data = (tmp_path / whole).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:-20])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "words.wav").write_text("no sound")
    lines = [
        json.dumps({"image": "cut.png", "label": "a"}),
        json.dumps({"image": "whole.png", "audio": "empty.wav", "label": "a"}),
        json.dumps({"audio": "words.wav", "label": "a"}),
        json.dumps({"audio": "words.wav", "label": "b"}),
        json.dumps({"image": "gone.png", "label": "a"}),
        "{broken",
        json.dumps({"image": "whole.png", "lable": "a"}),
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    told = check(tmp_path / "m.jsonl")
    assert told["verdict"] == "unreadable"
    assert told["lines"] == 4
    starts = sorted(row["where"].rpartition(":")[2] for row in told["unreadable"])
    assert starts == ["1", "2", "3", "5", "6", "7"]
    assert kinds(told)["unreadable file"] == ["cut.png", "empty.wav", "words.wav"]
    [words] = [f for f in told["findings"] if f["path"] and f["path"].endswith("words.wav")]
    assert words["lines"] == 2


def test_blank_pictures_and_silent_or_clipped_sounds_are_found_and_good_ones_are_not(tmp_path: Path) -> None:
    rows = [
        {"image": picture(tmp_path / "grey.png", 128), "audio": sound(tmp_path / "good.wav", 0.9)},
        {"image": picture(tmp_path / "noise.png"), "audio": sound(tmp_path / "loud.wav", 1.5)},
        {"audio": sound(tmp_path / "faint.wav", 0.0005)},
        {"audio": sound(tmp_path / "zero.wav", 0.0)},
        {"audio": sound(tmp_path / "full.wav", 1.0)},  # touches full scale and is not cut off
        {"audio": sound(tmp_path / "short.wav", 0.5, seconds=1 / RATE)},
    ]
    told = check(write_manifest(tmp_path / "m.jsonl", [{**row, "label": "a"} for row in rows]))
    assert told["verdict"] == "ok"
    assert kinds(told) == {
        "blank picture": ["grey.png"],
        "clipped sound": ["loud.wav"],
        "near-silent sound": ["faint.wav", "zero.wav", "short.wav"],
    }


def test_the_same_bytes_in_two_splits_are_found_whatever_the_files_are_called(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", seed=number)
    (tmp_path / "again.png").write_bytes((tmp_path / "0.png").read_bytes())
    sound(tmp_path / "a.wav", 0.5)
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    rows = [
        {"image": "0.png", "text": "is it red", "audio": "a.wav", "split": "train"},
        {"image": "0.png", "text": "is it blue", "split": "train"},
        {"image": "again.png", "text": "is it red", "split": "test"},
        {"image": "1.png", "text": "is it red", "audio": "b.wav", "split": "val"},
        {"image": "2.png", "text": "is it red", "split": "train"},
    ]
    told = check(write_manifest(tmp_path / "m.jsonl", [{**row, "label": "a"} for row in rows]))
    assert kinds(told) == {
        "same image in two splits": ["0.png"],
        "same audio in two splits": ["a.wav"],
        "same image and text in two splits": ["0.png"],
    }
    by_kind = {finding["what"]: finding for finding in told["findings"]}
    assert by_kind["same image in two splits"]["lines"] == 3
    assert by_kind["same image and text in two splits"]["lines"] == 2
    assert by_kind["same audio in two splits"]["detail"] == (
        f"train ({tmp_path / 'm.jsonl'}:1), val ({tmp_path / 'm.jsonl'}:4)"
    )


def test_a_text_alone_is_compared_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    rows = [{"text": "good morning", "label": "a", "split": split} for split in ("train", "test")]
    rows.append({"text": "good night", "label": "a", "split": "train"})
    told = check(write_manifest(tmp_path / "m.jsonl", rows))
    assert told["found"] == {"same text in two splits": 1}


def test_a_file_that_is_not_there_or_empty_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ManifestError, match=r"empty\.jsonl: no lines"):
        check(tmp_path / "empty.jsonl")
    with pytest.raises(ManifestError, match=r"gone\.jsonl: cannot be read"):
        check(tmp_path / "gone.jsonl")


def test_the_verb_prints_json_and_fails_where_a_file_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    good, bad = corpus(), write_manifest(tmp_path / "m.jsonl", [{"image": "cut.png", "label": "a"}])
    for manifest, code in ((good, 0), (bad, 1)):
        with pytest.raises(SystemExit) as stop:
            main(["data", "check", str(manifest), "--json"])
        told = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert ((stop.value.code or 0), told["verdict"]) == (code, "unreadable" if code else "ok")
