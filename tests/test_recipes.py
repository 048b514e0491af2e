"""The shipped recipes: each runs, small, on its own corpus, and has a page whose commands exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from edgefuse.runtime import cli, verbs
from edgefuse.runtime.manifest import SPLITS
from edgefuse.train import corpora, digits, home_commands, relational, security_events, spoken, triage
from edgefuse.train.recipe import RECIPES, load_recipe
from edgefuse.train.train import train
from tests import train_fixtures  # sets one thread for torch

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# The others are for benchmarks, or another size of one of these.
MADE = ("av_digits", "driving", "easy_vqa", "home_commands", "relational_vqa", "security_events", "triage")
PAGED = [name for name in NAMES if name in MADE]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = ["data.groups_per_step=8", "train.epochs=1", "train.validate_every=1"]


def few_voices(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(spoken, "VAL_VARIANTS", spoken.VAL_VARIANTS[:1])
    patch.setattr(spoken, "TEST_VARIANTS", spoken.TEST_VARIANTS[:1])
    patch.setattr(spoken, "flite_voices", tuple)


def small_home(out: Path, patch: pytest.MonkeyPatch) -> None:
    few_voices(patch)
    patch.setattr(home_commands, "ROOMS", {"train": 60, "val": 2, "test": 1})
    home_commands.home_commands(out, voices=1)


def small_security(out: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(security_events, "LINES", {"train": 15, "val": 5, "test": 5})
    security_events.security_events(out, voices=1)


def small_triage(out: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(triage, "LINES", {"train": 24, "val": 12, "test": 12})
    triage.triage(out)


def small_digits(out: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(digits, "OF_EACH_DIGIT", dict.fromkeys(SPLITS, 1))
    patch.setattr(digits, "LINES_PER_DIGIT", dict.fromkeys(SPLITS, 1))
    digits.av_digits(out, voices=1)


def small_vqa(out: Path, patch: pytest.MonkeyPatch) -> None:
    few_voices(patch)
    questions = corpora._questions
    patch.setattr(corpora, "_questions", lambda split, *rest: questions(split, *rest)[:400])
    corpora.easy_vqa(out, voices=1)


def small_relational(out: Path, patch: pytest.MonkeyPatch) -> None:
    few_voices(patch)
    patch.setattr(relational, "PICTURES", {"train": 8, "val": 1, "test": 1})
    relational.relational_vqa(out, voices=1)


MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "home_commands": small_home,
    "security_events": small_security,
    "triage": small_triage,
    "av_digits": small_digits,
    "easy_vqa": small_vqa,
    "relational_vqa": small_relational,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_recipe_runs_small_on_its_own_corpus(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MAKERS[name](tmp_path / "data", monkeypatch)
    told = train(name, [f"data.manifest={tmp_path / 'data' / 'manifest.jsonl'}", *SMALL], tmp_path / "run")
    recipe = load_recipe(name, [])
    assert set(told["accuracy"]) == set(recipe.data.subsets)
    assert all(0 <= value <= 1 for value in told["accuracy"].values())
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert train_fixtures.torch.get_num_threads() == 1


@pytest.mark.parametrize("name", PAGED)
def test_a_recipe_is_called_as_its_file_and_names_the_command_that_makes_its_data(name: str) -> None:
    recipe = load_recipe(name, [])
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert recipe.name == name
    assert f"edgefuse data {name.replace('_', '-')} --out {Path(recipe.data.manifest).parent}" in text


@pytest.mark.parametrize("name", PAGED)
def test_a_recipe_has_a_page_with_its_commands(name: str) -> None:
    page = (ROOT / "docs" / "recipes" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    assert f"edgefuse data {name.replace('_', '-')} --out {Path(load_recipe(name, []).data.manifest).parent}\n" in page
    assert re.search(rf"edgefuse train {name}( \S+=\S+)* --out", page)
    assert "generated" in page
    assert "## Limits" in page


def commands_of(page: Path) -> list[str]:
    """What a page's code blocks say after `edgefuse`, a line each."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line[9:] for block in blocks for line in block.splitlines() if line.startswith("edgefuse ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "_call", lambda *arguments, **options: {})
    commands = commands_of(page)
    assert len(commands) >= 3 or page.parent.name != "recipes"
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            cli.main(shlex.split(command, comments=True))
        assert not stop.value.code, command
