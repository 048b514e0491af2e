"""Security events: the rules leave each sensor alone in doubt, and nothing of the test is seen in training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.media import decode_audio, decode_image
from edgefuse.train import security_events as module
from edgefuse.train.event_sounds import LENGTH
from edgefuse.train.security_events import CELLS, MANIFEST, RULES, SIDE, SOUNDS, paint, security_events
from edgefuse.train.voices import TEST_VARIANTS, VAL_VARIANTS

FEW = {"train": 30, "val": 10, "test": 15}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with few lines and voices."""
    out = tmp_path_factory.mktemp("security_events")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        told = security_events(out, voices=1)
    assert told == {"manifests": [str(out / MANIFEST)], "lines": 55, "sounds": 55}
    return out


@pytest.fixture(scope="module")
def lines(corpus: Path) -> list[Example]:
    return read_manifest(corpus / MANIFEST)


def make_small(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "LINES", FEW)
    patch.setattr(module, "VAL_VARIANTS", VAL_VARIANTS[:1])
    patch.setattr(module, "TEST_VARIANTS", TEST_VARIANTS[:1])


def test_each_sensor_alone_is_right_as_often_as_the_docstring_says() -> None:
    """Events are equally likely, and so are the cells of an event; the best guess for each picture, for each sound."""
    chance = {(*cell, event): Fraction(1, 5 * len(cells)) for event, cells in CELLS.items() for cell in cells}
    best = []
    for sensor in (0, 1):
        by_value: dict[str, Counter[str]] = defaultdict(Counter)
        for cell, share in chance.items():
            by_value[cell[sensor]][cell[2]] += share  # type: ignore[assignment]
        best.append(f"{100 * float(sum(max(counter.values()) for counter in by_value.values())):.1f}")
    stated = re.search(
        r"at best (\d+\.\d) % of them, the sound alone (\d+\.\d) %", " ".join(str(module.__doc__).split())
    )
    assert stated is not None
    assert best == list(stated.groups())


def test_the_rules_name_every_pair_once() -> None:
    assert all(len(row) == len(SOUNDS) for row in RULES.values())
    assert sorted(cell for cells in CELLS.values() for cell in cells) == sorted((a, b) for a in RULES for b in SOUNDS)


def test_events_are_equally_frequent_in_every_split(lines: list[Example]) -> None:
    for split, count in FEW.items():
        assert Counter(line.label for line in lines if line.split == split) == dict.fromkeys(CELLS, count // 5)


def test_no_picture_and_no_sound_is_in_two_lines(lines: list[Example]) -> None:
    assert len({Path(str(line.image)).read_bytes() for line in lines}) == len(lines)
    assert len({Path(str(line.audio)).read_bytes() for line in lines}) == len(lines)


def test_pictures_and_sounds_can_be_decoded(lines: list[Example]) -> None:
    for line in lines[::9]:
        assert decode_image(Path(str(line.image)).read_bytes(), "picture").shape == (SIDE, SIDE, 3)
        pcm, rate = decode_audio(Path(str(line.audio)).read_bytes(), "sound")
        assert (len(pcm), rate) == (LENGTH, 16_000)


@pytest.mark.parametrize("seen", RULES)
def test_pictures_follow_from_the_seed_by_day_and_by_night(seen: str) -> None:
    pictures = [paint(seen, np.random.default_rng(seed)) for seed in range(40)]
    np.testing.assert_array_equal(pictures[0], paint(seen, np.random.default_rng(0)))
    colour = [np.ptp(picture.mean(axis=(0, 1))) for picture in pictures]
    nights = sum(value < 1 for value in colour)
    assert 10 <= nights <= 30


def test_a_parcel_a_hole_and_a_dark_door_are_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "as_camera", lambda picture, _: picture)
    monkeypatch.setattr(module, "NIGHT", (1.0, 1.0))

    def shows(seen: str, color: tuple[int, ...]) -> list[bool]:
        grey = round(float(np.mean(color)))
        wanted = (color, (grey, grey, grey))
        pictures = [paint(seen, np.random.default_rng(seed)) for seed in range(20)]
        return [any((picture == each).all(axis=2).sum() > 20 for each in wanted) for picture in pictures]

    assert all(shows("broken window", (10, 10, 10)))
    assert all(shows("open door", (8, 8, 8)))
    assert all(shows("courier", (200, 150, 90)))
    for other in ("empty yard", "person"):
        assert not any(shows(other, (10, 10, 10)))
        assert not any(shows(other, (8, 8, 8)))


def test_a_second_call_makes_no_file_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (corpus / MANIFEST).read_bytes()
    times = {path: path.stat().st_mtime_ns for path in corpus.rglob("*.wav")}
    lost = corpus / "images" / "val" / "00003.png"
    picture = lost.read_bytes()
    lost.unlink()
    make_small(monkeypatch)
    security_events(corpus, voices=1)
    assert lost.read_bytes() == picture
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*.wav")} == times
    assert (corpus / MANIFEST).read_bytes() == before


def test_the_page_shows_the_rules() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes" / "security_events.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert {row[0]: tuple(row[1:]) for row in rows if row[0] in RULES} == RULES
