"""Batches: each distinct sensor once, the same for a seed and a step, sounds shared by text, subsets in proportion."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.stats
import soundfile
import torch

from edgefuse.runtime.errors import ManifestError
from edgefuse.runtime.manifest import Example, label_names, read_manifest
from edgefuse.train.data import Batch, TrainingSteps
from edgefuse.train.data import training_lines as lines_of_recipe
from edgefuse.train.recipe import Recipe
from tests.train_fixtures import (
    LINES,
    PICTURES,
    QUESTIONS,
    STEPS,
    corpus,
    loader_of,
    steps_of,
    tiny_recipe,
    write_manifest,
)


class Recorder:
    """Stands in for the Loader: keeps what a step asks for, and decodes nothing."""

    def batch(self, *lines: Sequence[Any]) -> Any:
        self.examples, self.sounds, self.present = lines
        return Batch({}, {}, torch.zeros(0), torch.zeros(0), torch.zeros(0))


def asked(recipe: Recipe, examples: Sequence[Example], steps: int) -> list[tuple[Example, str | None, set[str]]]:
    """The lines of the first steps: example, sound, sensors."""
    recorder = Recorder()
    training = TrainingSteps(recipe, examples, recorder)  # type: ignore[arg-type]
    lines: list[tuple[Example, str | None, set[str]]] = []
    for step in range(steps):
        training[step]
        lines += zip(recorder.examples, recorder.sounds, recorder.present, strict=True)
    return lines


def training_lines() -> list[Example]:
    return read_manifest(corpus(), split="train")


def example(**values: str | None) -> Example:
    """A line that only has what is given."""
    names = ("image", "audio", "text", "label", "answer_type")
    return Example(where="m.jsonl:1", split="train", **{name: values.get(name) for name in names})


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches hold the same."""
    pairs = [(first.presence, second.presence), (first.labels, second.labels), (first.same_text, second.same_text)]
    pairs += [(value, second.inputs[name]) for name, value in first.inputs.items()]
    pairs += [(value, second.index[name]) for name, value in first.index.items()]
    return first.inputs.keys() == second.inputs.keys() and all(torch.equal(a, b) for a, b in pairs)


def test_each_distinct_sensor_of_a_batch_is_there_once() -> None:
    lines = training_lines()
    recipe = tiny_recipe(data={"flip": False})
    batch = loader_of(recipe).batch(lines, [e.audio for e in lines], [set(e.sensors) for e in lines])
    assert batch.inputs["image"].shape == (PICTURES["train"], 32, 32, 3)
    assert batch.inputs["image"].dtype == torch.uint8
    assert batch.inputs["audio"].shape == (len({e.audio for e in lines}), 8000)
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape == (len(QUESTIONS), 8)
    assert batch.inputs["input_ids"].dtype == torch.int32
    assert batch.presence.equal(torch.ones(LINES["train"], 3))


def test_a_line_points_at_its_own_sensors() -> None:
    lines = training_lines()
    loader = loader_of(tiny_recipe())
    whole = loader.batch(lines, [e.audio for e in lines], [set(e.sensors) for e in lines])
    names = label_names(read_manifest(corpus()))
    for row, line in enumerate(lines):
        alone = loader.batch([line], [line.audio], [set(line.sensors)])
        for m, tensor in (("image", "image"), ("audio", "audio"), ("text", "input_ids")):
            assert torch.equal(whole.inputs[tensor][whole.index[m][row]], alone.inputs[tensor][0])
        assert names[int(whole.labels[row])] == line.label


def test_a_modality_that_no_line_shows_is_absent() -> None:
    lines = training_lines()[:4]
    batch = loader_of(tiny_recipe()).batch(lines, [None] * 4, [{"image"}, {"image"}, {"text"}, {"image"}])
    assert set(batch.inputs) == {"image", "input_ids", "attention_mask"}
    assert set(batch.index) == {"image", "text"}
    assert batch.presence.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert batch.index["image"][2] == 0
    assert batch.inputs["input_ids"].shape == (1, 8)
    assert not len(batch.same_text)


def test_a_sound_knows_the_row_of_the_text_it_speaks() -> None:
    lines = training_lines()
    present = [{"image", "audio"} if row % 2 else {"text"} for row in range(len(lines))]
    batch = loader_of(tiny_recipe()).batch(lines, [e.audio for e in lines], present)
    sounds = dict.fromkeys(e.audio for e, p in zip(lines, present, strict=True) if "audio" in p)
    texts = list(dict.fromkeys(e.text for e, p in zip(lines, present, strict=True) if "text" in p))
    text_of = {e.audio: e.text for e in lines}
    assert [texts[row] for row in batch.same_text] == [text_of[sound] for sound in sounds]
    without = loader_of(tiny_recipe()).batch(lines, [e.audio for e in lines], [{"audio"}] * len(lines))
    assert without.same_text.tolist() == [-1] * len(sounds)


@pytest.mark.parametrize(("sensor", "name"), [("image", "train_3.png"), ("audio", "train_1_2.wav")])
def test_a_file_that_cannot_be_decoded_names_its_line(tmp_path: Path, sensor: str, name: str) -> None:
    folder = corpus().parent
    rows = [json.loads(line) for line in corpus().read_text().splitlines()]
    for row in rows:
        for key in ("image", "audio"):
            row[key] = str(tmp_path / name) if row[key] == name else str(folder / row[key])
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:-200])
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    first = 1 + next(number for number, row in enumerate(rows) if row[sensor] == str(tmp_path / name))
    lines = read_manifest(manifest, split="train")
    with pytest.raises(ManifestError, match="is cut off") as caught:
        loader_of(tiny_recipe(manifest)).batch(lines, [e.audio for e in lines], [{sensor}] * len(lines))
    assert str(caught.value).startswith(f"{manifest}:{first}: {tmp_path / name}: ")


def test_a_step_depends_on_the_seed_and_its_number_only() -> None:
    recipe = tiny_recipe(data={"sounds_per_step": 2})
    first, second = steps_of(recipe), steps_of(recipe)
    wanted = [first[step] for step in range(6)]
    random.seed(1)
    torch.manual_seed(1)
    for step in (5, 0, 3, 3):
        assert same(second[step], wanted[step])
    other = steps_of(tiny_recipe(data={"sounds_per_step": 2}, train={"seed": 1}))
    assert not any(same(other[step], wanted[step]) for step in range(6))
    assert not same(wanted[0], wanted[4])  # the same place in the next epoch


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # torch forks its workers
def test_workers_make_the_same_steps() -> None:
    steps = steps_of(tiny_recipe())
    made = torch.utils.data.DataLoader(steps, batch_size=None, sampler=range(1, 4), num_workers=2)  # type: ignore[arg-type]
    assert all(same(batch, steps[step]) for step, batch in enumerate(made, start=1))


def test_an_epoch_takes_every_group_once_and_whole() -> None:
    lines = training_lines()
    steps = steps_of(tiny_recipe())
    assert (len(steps), steps.steps_per_epoch) == (STEPS, 4)
    for epoch in range(2):
        taken = asked(tiny_recipe(), lines, 4 * (epoch + 1))[epoch * len(lines) :]
        assert sorted(line.where for line, _, _ in taken) == sorted(line.where for line in lines)
    for start in range(0, len(taken), 6):  # two pictures a step, three questions each
        assert len({line.image for line, _, _ in taken[start : start + 6]}) == 2


def test_without_groups_a_step_takes_single_lines() -> None:
    recipe = tiny_recipe(data={"group_by": None, "groups_per_step": 5})
    steps = steps_of(recipe)
    assert steps.steps_per_epoch == LINES["train"] // 5
    assert len(steps[0].labels) == 5


def test_lines_without_the_grouping_sensor_are_groups_of_their_own() -> None:
    lines = [example(text=f"word {i}", label="a") for i in range(6)] + [example(image="a.png", text="b")] * 3
    taken = asked(tiny_recipe(data={"groups_per_step": 1}), lines, 7)
    assert Counter(line.text for line, _, _ in taken) == {**{f"word {i}": 1 for i in range(6)}, "b": 3}


def test_more_groups_a_step_than_there_are_is_one_step_of_all() -> None:
    steps = steps_of(tiny_recipe(data={"groups_per_step": 100}))
    assert steps.steps_per_epoch == 1
    assert len(steps[0].labels) == LINES["train"]


def test_sounds_are_shared_between_lines_with_the_same_text_only() -> None:
    lines = training_lines()
    text_of = {line.audio: line.text for line in lines}
    recipe = tiny_recipe(data={"groups_per_step": 8, "sounds_per_step": 2})
    used = set()
    for step in range(12):
        taken = asked(recipe, lines, step + 1)[step * len(lines) :]
        heard = {sound for _, sound, _ in taken if sound is not None}
        assert len(heard) == 2
        assert len({text_of[sound] for sound in heard}) == 2
        assert all(text_of[sound] == line.text for line, sound, _ in taken if sound is not None)
        assert all("audio" not in present for _, sound, present in taken if sound is None)
        used |= heard
    assert used == set(text_of)


def test_without_a_limit_every_line_hears_its_own_sound() -> None:
    assert all(sound == line.audio for line, sound, _ in asked(tiny_recipe(), training_lines(), 4))


def test_a_sound_without_a_text_is_always_the_lines_own() -> None:
    lines = [example(audio=f"{i}.wav", label="a") for i in range(8)]
    recipe = tiny_recipe(data={"group_by": None, "groups_per_step": 8, "sounds_per_step": 2, "subsets": {}})
    assert {(line.audio, sound) for line, sound, _ in asked(recipe, lines, 1)} == {(e.audio, e.audio) for e in lines}


def test_a_line_whose_only_sensor_is_not_heard_waits_for_another_step() -> None:
    lines = [example(audio=f"{i}.wav", text=f"word {i}", label="a") for i in range(8)]
    data = {"group_by": None, "groups_per_step": 8, "sounds_per_step": 3, "subsets": {}}
    taken = asked(tiny_recipe(data=data, image=None, text=None), lines, 1)
    assert len(taken) == 3
    assert all(sound == line.audio and present == {"audio"} for line, sound, present in taken)


def test_subsets_are_drawn_in_proportion() -> None:
    lines = training_lines()
    weights = {"image+text": 4, "image+audio": 4, "image+audio+text": 1, "text": 0.5, "audio": 0.5}
    taken = asked(tiny_recipe(data={"subsets": weights}), lines, 200)
    drawn = Counter(frozenset(present) for _, _, present in taken)
    found = [drawn[frozenset(name.split("+"))] for name in weights]
    expected = len(taken) * np.array(list(weights.values())) / sum(weights.values())
    assert sum(found) == len(taken) == 1200
    assert scipy.stats.chisquare(found, expected).pvalue > 0.01


def test_a_line_is_shown_with_several_subsets_and_none_twice() -> None:
    lines = training_lines()
    weights = {"image+audio": 2, "image": 1, "audio": 1e-9}
    taken = asked(tiny_recipe(data={"subsets": weights, "subsets_per_line": 2, "group_by": None}), lines, 20)
    shown = [{"+".join(sorted(present)) for _, _, present in taken[at : at + 2]} for at in range(0, len(taken), 2)]
    assert all(first[0] == second[0] for first, second in zip(taken[::2], taken[1::2], strict=True))
    assert all(subsets == {"audio+image", "image"} for subsets in shown)


def test_several_subsets_of_a_line_share_its_sensors() -> None:
    """What is encoded, which is nearly all of a step's work, does not grow with the subsets."""
    data = {"subsets": {"image+audio": 1, "image": 1, "audio": 1}, "group_by": None}
    once = steps_of(tiny_recipe(data={**data, "subsets": {"image+audio": 1}}))[0]
    thrice = steps_of(tiny_recipe(data={**data, "subsets_per_line": 3}))[0]
    assert len(thrice.labels) == 3 * len(once.labels)
    assert thrice.labels.tolist() == once.labels.repeat_interleave(3).tolist()
    assert {m: thrice.distinct(m) for m in ("image", "audio")} == {m: once.distinct(m) for m in ("image", "audio")}
    assert sorted(map(tuple, thrice.presence[:3].tolist())) == [(0, 1, 0), (1, 0, 0), (1, 1, 0)]


def test_a_line_with_fewer_subsets_than_asked_for_shows_those_it_has() -> None:
    lines = [example(image=f"{i}.png", label="a") for i in range(8)]
    data = {"subsets": {"image+text": 1, "image": 1, "text": 1}, "subsets_per_line": 3, "group_by": None}
    data["groups_per_step"] = 8
    assert [present for _, _, present in asked(tiny_recipe(data=data), lines, 1)] == [{"image"}] * 8


def test_a_line_shows_only_sensors_it_has_and_the_model_reads() -> None:
    lines = [example(image=f"{i}.png", text="a", label="a") for i in range(4)]
    lines += [example(image=f"{i}.png", label="a") for i in range(4, 8)]
    weights = {"image+text": 1, "image+audio": 1, "text": 1}
    taken = asked(tiny_recipe(data={"subsets": weights}), lines, 40)
    assert {frozenset(p) for line, _, p in taken if line.text} == {frozenset({"image", "text"}), frozenset({"text"})}
    assert {frozenset(p) for line, _, p in taken if not line.text} == {frozenset({"image"})}
    blind = tiny_recipe(data={"subsets": {}, "group_by": None}, image=None)
    assert {frozenset(p) for _, _, p in asked(blind, lines[:4], 2)} == {frozenset({"text"})}


def test_half_of_the_pictures_are_mirrored_and_nothing_else_changes() -> None:
    plain, flipped = steps_of(tiny_recipe(data={"flip": False})), steps_of(tiny_recipe())
    mirrored = []
    for step in range(STEPS):
        before, after = plain[step], flipped[step]
        assert torch.equal(before.presence, after.presence)
        for old, new in zip(before.inputs["image"], after.inputs["image"], strict=True):
            mirrored.append(torch.equal(new, old.flip(1)))
            assert mirrored[-1] or torch.equal(new, old)
        assert "audio" not in before.inputs or torch.equal(before.inputs["audio"], after.inputs["audio"])
    assert scipy.stats.binomtest(sum(mirrored), 2 * STEPS).pvalue > 0.01


def test_a_picture_is_what_opencv_reads_and_shrinks() -> None:
    first = training_lines()[0]
    seen = cv2.imread(str(first.image))[:, :, ::-1]
    alone = loader_of(tiny_recipe()).batch([first], [None], [{"image"}]).inputs["image"][0].numpy()
    np.testing.assert_array_equal(alone, cv2.resize(seen, (32, 32), interpolation=cv2.INTER_AREA))


def test_a_sound_is_what_the_file_holds() -> None:
    first = training_lines()[0]
    heard = loader_of(tiny_recipe()).batch([first], [first.audio], [{"audio"}]).inputs["audio"][0].numpy()
    pcm, rate = soundfile.read(str(first.audio), dtype="float32")
    assert rate == 16_000
    np.testing.assert_array_equal(heard, pcm)


def test_fewer_lines_are_one_draw_for_all_seeds_in_which_no_label_of_a_cycle_is_lost(tmp_path: Path) -> None:
    rows = [{"text": f"line {number}", "label": "ab"[number % 2], "split": "train"} for number in range(100)]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    drawn = [
        lines_of_recipe(tiny_recipe(manifest, data={"limit": limit}, train={"seed": seed}))
        for limit, seed in ((50, 0), (50, 1), (500, 0), (None, 0))
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 50
    assert {line.label for line in drawn[0]} == {"a", "b"}
    assert drawn[2] == drawn[3] == read_manifest(manifest)
    assert drawn[0] == [line for line in drawn[3] if line in drawn[0]]
