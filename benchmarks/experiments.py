"""An experiment from nothing: verbs in processes of their own, what is finished is kept, and its result as JSON."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from edgefuse.benchmarks.environment import describe_environment
from edgefuse.runtime.errors import EdgefuseError
from edgefuse.runtime.files import write_atomic

RESULTS = Path(__file__).parent / "results"
Result = dict[str, Any]


def edgefuse(*arguments: str) -> Result:
    """Run a verb, and return what it prints as JSON.

    Raises:
        EdgefuseError: it failed; it has said why.
    """
    return printed("edgefuse", "edgefuse.runtime.cli", *arguments, "--json")


def printed(name: str, module: str, *arguments: str) -> Result:
    """Run a module, and return the JSON of its last line; `name` is what messages call it.

    Raises:
        EdgefuseError: it failed; it has said why.
    """
    told = f"{name} {shlex.join(arguments).removesuffix(' --json')}"
    Console(stderr=True, highlight=False).print(f"$ {told}", soft_wrap=True)
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EdgefuseError(f"`{told}` failed with exit code {done.returncode}; see above")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def made_data(verb: str, folder: Path, *options: str, last: str = "manifest.jsonl") -> Path:
    """The folder of generated data, made by `edgefuse data VERB` where the file that it writes last is not there."""
    if not (folder / last).exists():
        edgefuse("data", verb, "--out", str(folder), *options)
    return folder


def made_bundle(run: Path, bundle: Path) -> Path:
    """The bundle of a finished run, exported where it is not there."""
    if not (bundle / "bundle.json").exists():
        edgefuse("export", str(run), "--out", str(bundle))
    return bundle


def trained_bundle(folder: Path, recipe: str, *changes: str) -> Path:
    """A bundle of the recipe, trained and exported where it is not there."""
    edgefuse("train", recipe, *changes, "--out", str(folder / "run"))
    return made_bundle(folder / "run", folder / "bundle")


def accuracies(bundle: Path, manifest: Path) -> dict[str, float]:
    """Accuracy of the fp32 parts on the test lines, by the sensors that are shown."""
    found = edgefuse("eval", str(bundle), str(manifest), "--part-dir", "fp32")["by_subset"]
    return {subset: score["accuracy"] for subset, score in found.items()}


def conclude(name: str, experiment: Callable[[], Result]) -> NoReturn:
    """Keep what `experiment` finds as results/<name>.json, print it, and exit with 1 if it fails or misses its bar."""
    try:
        result = experiment()
    except EdgefuseError as error:
        sys.exit(str(error))
    document = json.dumps({**result, "environment": describe_environment()}, indent=2)
    write_atomic(RESULTS / f"{name}.json", document.encode())
    print(json.dumps(result))
    sys.exit(not result["reached"])
