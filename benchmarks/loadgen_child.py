"""MLPerf's LoadGen asking a Predictor, in a process of its own: it is a C++ library that keeps state and writes logs.

Reads one job as JSON from stdin, see `Job`; leaves LoadGen's logs in the job's folder and prints nothing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

import mlperf_loadgen
import numpy as np

from edgefuse.runtime.backend_onnx import OnnxBackend
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.predictor import Predictor

SAMPLES_PER_QUERY = 8  # MultiStream's, by MLPerf's rules
SURPLUS = 1.25  # of samples for Offline, which must not be done before its time


class Run(TypedDict):
    """One call of LoadGen."""

    scenario: str  # SingleStream, MultiStream or Offline
    mode: str  # AccuracyOnly or PerformanceOnly
    queries: int  # at least
    seconds: float  # at least


class Job(TypedDict):
    """Everything that is asked of one part set."""

    bundle: str
    part_set: str
    samples: list[dict[str, str]]  # sensor -> path of the picture or sound, or the text itself
    folder: str  # where the logs go
    runs: list[Run]  # Offline last: those before it tell how many samples a second it must expect


class _Asked:
    """The system under test and the library of its samples, as LoadGen calls them."""

    def __init__(self, predictor: Predictor, samples: list[dict[str, str]]) -> None:
        self._predictor = predictor
        self._samples = samples
        self._loaded: dict[int, dict[str, Any]] = {}
        self.answered, self.busy_s = 0, 0.0
        self._labels = {label: number for number, label in enumerate(predictor.info.labels)}

    def load(self, indices: list[int]) -> None:
        """Files into memory, untimed by MLPerf's rules; decoding them is timed."""
        for index in indices:
            sample = self._samples[index]
            self._loaded[index] = {s: v if s == "text" else Path(v).read_bytes() for s, v in sample.items()}

    def unload(self, indices: list[int]) -> None:
        """Forget them."""
        for index in indices:
            self._loaded.pop(index, None)

    def issue(self, query: list[Any]) -> None:
        """Answer the samples one after the other; an answer is the number of its label, int32."""
        for sample in query:
            begin = time.perf_counter()
            label = self._predictor.predict(**self._loaded[sample.index]).label
            self.busy_s += time.perf_counter() - begin
            self.answered += 1
            answer = np.array([self._labels[label]], np.int32)
            response = mlperf_loadgen.QuerySampleResponse(sample.id, answer.ctypes.data, answer.nbytes)
            mlperf_loadgen.QuerySamplesComplete([response])

    def flush(self) -> None:
        """Nothing waits."""


def ask(job: Job) -> None:
    """Let LoadGen do every run of the job, one after the other."""
    bundle = Bundle.open(job["bundle"])
    count = len(job["samples"])
    with OnnxBackend(bundle, job["part_set"]) as backend:
        asked = _Asked(Predictor(bundle, backend), job["samples"])
        system = mlperf_loadgen.ConstructSUT(asked.issue, asked.flush)
        library = mlperf_loadgen.ConstructQSL(count, count, asked.load, asked.unload)
        per_second = 1.0
        for run in job["runs"]:
            asked.answered, asked.busy_s = 0, 0.0
            mlperf_loadgen.StartTestWithLogSettings(
                system, library, _settings(run, per_second), _logs(job["folder"], run), ""
            )
            per_second = max(per_second, SURPLUS * asked.answered / asked.busy_s)
        mlperf_loadgen.DestroyQSL(library)
        mlperf_loadgen.DestroySUT(system)


def _settings(run: Run, per_second: float) -> Any:
    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, run["scenario"])
    settings.mode = getattr(mlperf_loadgen.TestMode, run["mode"])
    settings.min_query_count = run["queries"]
    settings.min_duration_ms = round(1000 * run["seconds"])
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    settings.offline_expected_qps = per_second
    return settings


def _logs(folder: str, run: Run) -> Any:
    output = mlperf_loadgen.LogOutputSettings()
    output.outdir = folder
    output.prefix = f"{run['scenario']}_{run['mode']}_"
    output.copy_summary_to_stdout = False
    logs = mlperf_loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


if __name__ == "__main__":
    ask(json.load(sys.stdin))
