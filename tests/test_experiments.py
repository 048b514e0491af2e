"""Experiments: verbs run in turn, a failure is told once, and a result is kept with the machine it was found on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgefuse.benchmarks import experiments
from edgefuse.benchmarks.experiments import accuracies, conclude, edgefuse, made_bundle
from edgefuse.runtime.errors import EdgefuseError


def test_a_verb_gives_what_it_prints_as_json(tiny) -> None:
    found = edgefuse("eval", str(tiny.bundle), str(tiny.manifest), "--part-dir", "fp32")
    assert found["n"] == 12
    assert accuracies(tiny.bundle, tiny.manifest) == {
        subset: score["accuracy"] for subset, score in found["by_subset"].items()
    }


def test_a_verb_that_fails_is_named_with_what_it_was_asked(tmp_path: Path) -> None:
    with pytest.raises(EdgefuseError, match=r"`edgefuse eval .*gone m\.jsonl` failed with exit code 1; see above"):
        edgefuse("eval", str(tmp_path / "gone"), "m.jsonl")


def test_a_bundle_that_is_there_is_not_made_again(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "edgefuse", lambda *_: pytest.fail("it was exported again"))
    assert made_bundle(Path("some/run"), tiny.bundle) == tiny.bundle


@pytest.mark.parametrize("reached", [True, False])
def test_a_result_is_kept_printed_and_ends_the_process(
    reached: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as stop:
        conclude("tried", lambda: {"reached": reached, "points": 1.5})
    assert bool(stop.value.code) is not reached
    assert json.loads(capsys.readouterr().out) == {"reached": reached, "points": 1.5}
    kept = json.loads((tmp_path / "tried.json").read_text())
    assert kept["points"] == 1.5
    assert kept["environment"]["cores_usable"] > 0


def test_an_experiment_that_fails_says_why_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> experiments.Result:
        raise EdgefuseError("`edgefuse train` failed with exit code 1; see above")

    monkeypatch.setattr(experiments, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="`edgefuse train` failed with exit code 1; see above"):
        conclude("tried", fails)
    assert not list(tmp_path.iterdir())
