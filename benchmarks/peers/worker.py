"""One peer, alone in its process and its environment: answers a JSON line of queries with a JSON line, until they end.

    python -m edgefuse.benchmarks.peers.worker MODULE OPTION JOB

A line in is a list of queries, a line out {scores, host_ms, model_ms, torch}, or {error}. What the peer prints goes to
stderr. The clock does not run while lines are read and written.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from typing import Any

from edgefuse.benchmarks.peers.contract import Job, Opened


def main() -> None:
    """Open the peer, then answer."""
    module, option, job = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries print
    opened = importlib.import_module(f"edgefuse.benchmarks.peers.{module}").open_peer(option, Job(**json.loads(job)))
    for line in sys.stdin:
        print(json.dumps(_answer(opened, json.loads(line))), file=out, flush=True)


def _answer(opened: Opened, queries: list[Any]) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        prepared = opened.prepare(queries)
        ready = time.perf_counter()
        scores = opened.infer(prepared)
        ended = time.perf_counter()
    except Exception as error:  # of any library; whether a peer can answer at all is one of the questions
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    times = {"host_ms": (ready - began) * 1e3, "model_ms": (ended - ready) * 1e3}
    return {"scores": scores.tolist(), **times, "torch": "torch" in sys.modules}


if __name__ == "__main__":
    main()
