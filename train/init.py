"""Begin with one's own data: `edgefuse init FOLDER` writes a commented recipe, and the commands that come next."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgefuse.runtime.bundle import MODALITIES
from edgefuse.runtime.errors import OptionError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.media import read_media
from edgefuse.runtime.signals import column_names
from edgefuse.train.data_check import count_words, files_of, spread
from edgefuse.train.media_facts import Facts, read_facts
from edgefuse.train.recipe_text import commented

RECIPE, README = "recipe.yaml", "README.md"
USUAL = ("image", "audio", "text")  # where neither sensors nor data are given
LOOKED_AT = 200  # lines whose files sizes and lengths are taken from
LARGEST_SIDE, SIDE_STEP = 224, 32  # pixels; encoders halve a picture five times
LONGEST_S = 30.0
VALUES = {  # of each sensor, in a line of a manifest
    "image": "pictures/0001.jpg",
    "audio": "sounds/0001.wav",
    "text": "what is to be answered",
    "signal": "signals/0001.csv",
}
NO_DEFAULT = {"signal": {"features": ["speed", "distance"], "steps": 32, "rate_hz": 10.0}}  # only the user knows
HEADER = """# Made by `edgefuse init`: every setting with its default, meaning and range. What is not needed may go.
# Train it: edgefuse train {recipe} --out {run}; a setting can also be changed there, as in train.epochs=3
"""


def init(folder: Path, sensors: str | None = None, manifest: Path | None = None) -> dict[str, Any]:
    """Write recipe.yaml and README.md into `folder`.

    Args:
        folder: made where it is missing.
        sensors: what the model reads, as in "image+text"; those of the manifest where None.
        manifest: data to fit the size of pictures, the length of sounds and texts, and the grouping of lines to.

    Raises:
        OptionError: the files are there already, or a sensor does not exist.
        ManifestError: a line of the manifest cannot be used.
        MediaError: a signal's columns cannot be read.
    """
    for name in (RECIPE, README):
        if (folder / name).exists():
            raise OptionError(f"{folder / name} exists and is not overwritten; choose another folder")
    examples = read_manifest(manifest, split="train") if manifest else []
    chosen = _sensors(sensors, examples)
    source = manifest or folder / "manifest.jsonl"
    values: dict[str, Any] = {"name": folder.resolve().name, **NO_DEFAULT, **fit_to(examples)}
    values["data"]["manifest"] = str(source)
    header = HEADER.format(recipe=folder / RECIPE, run=folder / "run")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECIPE, (header + commented(chosen, values)).encode())
    write_atomic(folder / README, readme(folder, source, chosen).encode())
    return {"recipe": str(folder / RECIPE), "readme": str(folder / README), "sensors": "+".join(chosen)}


def fit_to(examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
    """Settings that follow from the data: section -> key -> value."""
    some = examples[:: math.ceil(len(examples) / LOOKED_AT) or 1]
    facts = read_facts({file: None for example in some for file in files_of(example)})
    fitted: dict[str, dict[str, Any]] = {"image": {}, "audio": {}, "text": {}, "data": {}}
    for side in ("height", "width"):
        if pixels := spread([getattr(f, side) for f in _of("image", facts)]):
            fitted["image"][side] = min(LARGEST_SIDE, SIDE_STEP * math.ceil(pixels["median"] / SIDE_STEP))
    if seconds := spread([f.seconds for f in _of("audio", facts)]):
        fitted["audio"]["seconds"] = min(LONGEST_S, max(0.2, math.ceil(10 * seconds["p95"]) / 10))
    if words := count_words(examples)["words"]:  # WordPiece cuts rare words in pieces and adds two marks
        fitted["text"]["max_tokens"] = 8 * math.ceil((1.5 * words["p95"] + 2) / 8)
    tables = [example.signal for example in examples if example.signal and example.signal.endswith(".csv")]
    if tables:
        fitted["signal"] = {**NO_DEFAULT["signal"], "features": column_names(read_media(tables[0]), tables[0])}
    pictures = [example.image for example in examples if example.image]
    if pictures and 2 * len(set(pictures)) <= len(pictures):
        fitted["data"]["group_by"] = "image"
    return fitted


def readme(folder: Path, manifest: Path, sensors: Sequence[str]) -> str:
    """What to do next, as commands that can be pasted."""
    line = json.dumps({**{sensor: VALUES[sensor] for sensor in sensors}, "label": "yes", "split": "train"})
    given = " ".join(f'--{sensor} "{VALUES[sensor]}"' for sensor in sensors)
    return f"""# {folder.resolve().name}

`{RECIPE}` says how a model of {", ".join(sensors)} is trained on `{manifest}`.
A manifest has a JSON object on every line; paths are relative to it, `split` is one of train, val and test:

```
{line}
```

What comes next:

```
# what is in the data, and what is wrong with it
edgefuse data check {manifest} --out {folder}/data.html
# goes on where it stopped when called again
edgefuse train {folder}/{RECIPE} --out {folder}/run
edgefuse export {folder}/run --out {folder}/bundle
# smaller and faster, under an accuracy gate
edgefuse quantize {folder}/bundle
# accuracy on the lines of the test split
edgefuse eval {folder}/bundle {manifest}
edgefuse predict {folder}/bundle {given}
```
"""


def _sensors(sensors: str | None, examples: Sequence[Example]) -> tuple[str, ...]:
    """The modalities of the model, in the order of MODALITIES."""
    there = {sensor for example in examples for sensor in example.sensors}
    asked = set(sensors.split("+")) if sensors else there or set(USUAL)
    for sensor in sorted(asked):
        if sensor not in MODALITIES:
            raise OptionError(f"--sensors names {sensor!r}; there are {', '.join(MODALITIES)}, joined by +")
        if examples and sensor not in there:
            raise OptionError(f"--sensors names {sensor}, which no training line has; they have {', '.join(there)}")
    return tuple(modality for modality in MODALITIES if modality in asked)


def _of(sensor: str, facts: dict[tuple[str, str], Facts]) -> list[Facts]:
    return [f for (kind, _), f in facts.items() if kind == sensor and not f.problem]
