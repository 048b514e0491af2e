"""The Sort-of-CLEVR protocol from nothing: `python benchmarks/relational.py`.

Makes the data, teaches in three lessons (sentences, objects, relations), and measures the plain and the relational
questions on the test pictures, typed and spoken, into benchmarks/results/relational.json. A second call goes on where
the first one stopped. About 40 minutes of one CPU core.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from edgefuse.benchmarks.experiments import Result, conclude, edgefuse, made_bundle, made_data

RECIPE = "relational_vqa"
BARS = {"plain": 0.98, "relational": 0.94}
# What was said: each of 36 sentences and its sound find each other, so that no two of them are alike any more.
SENTENCES = (
    *("image=null", "data.group_by=null", "data.subsets={}", "data.groups_per_step=64", "data.sounds_per_step=32"),
    *("data.limit=19200", "train.epochs=2", "train.warmup=0.1", "train.learning_rate=0.001"),
    *("text.rate=0.5", "audio.rate=0.7"),
)
# What each object is: the sentence scales what the cells of the picture show.
OBJECTS = ("image.slots=0", "image.layers=0", "train.epochs=5", "train.learning_rate=0.001")
KNOWN = ("text.freeze=true", "audio.freeze=true")  # from the second lesson on


def relational(out: Path) -> Result:
    """{typed, spoken: {answer type: score}, reached}."""
    manifest = made_data("relational-vqa", out / "data") / "manifest.jsonl"
    data = f"data.manifest={manifest}"
    sentences, objects, relations = (out / lesson for lesson in ("sentences", "objects", "relations"))
    edgefuse("pretrain", RECIPE, data, *SENTENCES, "--out", str(sentences))
    edgefuse("train", RECIPE, data, *OBJECTS, *KNOWN, f"train.start={sentences}", "--out", str(objects))
    edgefuse("train", RECIPE, data, *KNOWN, f"train.start={objects}", "--out", str(relations))
    bundle = made_bundle(relations, out / "bundle")
    found = {}
    for name, dropped in {"typed": "audio", "spoken": "text"}.items():
        options = ("--part-dir", "fp32", "--drop", dropped)
        found[name] = edgefuse("eval", str(bundle), str(manifest), *options)["by_answer_type"]
    return {**found, "reached": all(found["typed"][kind]["accuracy"] >= bar for kind, bar in BARS.items())}


def main() -> None:
    """Run it, and exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/relational"), help="folder of data, runs and bundle")
    given = parser.parse_args()
    conclude("relational", partial(relational, given.out))


if __name__ == "__main__":
    main()
