"""Do the verdicts of `edgefuse bench --against` hold here? `python benchmarks/against_check.py --repeats 20 BUNDLE`.

A bundle is compared with itself, which must be no difference, and with itself made 10 % slower, which must be found;
each at least 19 times of 20. Writes benchmarks/results/against_check.json. Run it where nothing else does.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.benchmarks.against import PLAN, Plan, compare_openers
from edgefuse.benchmarks.environment import describe_environment
from edgefuse.benchmarks.loop_readings import examples_of
from edgefuse.runtime.backend import Parts, Tensors
from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import HEAD, Bundle
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.predictor import Predictor
from edgefuse.runtime.show import show

RESULT = Path(__file__).parent / "results" / "against_check.json"
PLANTED = 0.10
ASKED = 0.95  # share of the repeats that must be right
CASES = {"the same bundle": (0.0, "no difference"), f"{PLANTED:.0%} slower": (PLANTED, "slower")}


class Slowed:
    """Parts after whose head a share of the query's own time is waited, with the core busy.

    Args:
        parts: what runs.
        share: of the time since the last part was made ready, at which the predictor's clock starts.
    """

    def __init__(self, parts: Parts, share: float) -> None:
        self._parts = parts
        self.lanes = parts.lanes
        self._share = share
        self._begin = perf_counter()

    def load(self, part: str) -> None:
        """Make `part` ready."""
        self._parts.load(part)
        self._begin = perf_counter()

    def run(self, part: str, inputs: Tensors) -> dict[str, NDArray[np.float32]]:
        """Run `part`; the head, which is last, takes longer than it needs."""
        outputs = self._parts.run(part, inputs)
        if part == HEAD:
            now = perf_counter()
            until = now + self._share * (now - self._begin)
            while perf_counter() < until:
                pass
        return outputs


def check(bundle: Bundle, part_set: str, examples: list[Example], repeats: int, plan: Plan) -> dict[str, Any]:
    """{rows: what was asked and found, comparisons: {case: every `Comparison`}} of `repeats` of each case."""

    @contextmanager
    def opened(share: float = 0.0) -> Iterator[Predictor]:
        with OnnxBackend(bundle, part_set) as backend:
            yield Predictor(bundle, Slowed(backend, share))

    comparisons: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
    for _ in range(repeats):
        for case, (share, _) in CASES.items():
            ours = partial(opened, share)
            found = compare_openers(ours, opened, examples, bundle.info.modalities, plan, lambda: None)
            comparisons[case].append(asdict(found))
    rows = []
    for case, (_, expected) in CASES.items():
        verdicts = Counter(found["verdict"] for found in comparisons[case])
        asked = int(np.ceil(ASKED * repeats))
        row = {"case": case, "asked": f"{expected} in {asked} of {repeats}", "found": dict(verdicts)}
        ratio = float(np.median([found["ratio"] for found in comparisons[case]]))
        rows.append({**row, "median_ratio": ratio, "kept": "yes" if verdicts[expected] >= asked else "NO"})
    return {"rows": rows, "comparisons": comparisons}


def main() -> None:
    """Run it, print the table, keep the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--part-set", default="cpu")
    parser.add_argument("--manifest", type=Path, help="labelled data; that of the training otherwise")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    manifest = given.manifest or Path(str(bundle.info.lineage.get("manifest", "")))
    environment = describe_environment()  # before our own load
    examples = examples_of(bundle, manifest, PLAN.blocks * PLAN.queries)
    result = check(bundle, given.part_set, examples, given.repeats, PLAN)
    about = {"bundle": bundle.info.name, "part_set": given.part_set, "plan": asdict(PLAN), "environment": environment}
    write_atomic(given.out, json.dumps({**about, **result}, indent=1).encode() + b"\n")
    show({"measured": result["rows"]})


if __name__ == "__main__":
    main()
