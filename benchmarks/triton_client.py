"""Latency, throughput and accuracy of a Triton server that has what `edgefuse export-triton` wrote:

    python benchmarks/triton_client.py my_bundle my/manifest.jsonl --url localhost:8001 --concurrency 8

Every worker sends a request, waits for the answer and sends the next. Decoding, resizing and tokenising stay with the
client and are not in the times; what is on the way and in the server is.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, EdgefuseError, MissingExtraError, OptionError
from edgefuse.runtime.manifest import SPLITS, Example, read_manifest
from edgefuse.runtime.preprocess import Preprocessor

PORTS = {"grpc": 8001, "http": 8000}  # Triton's own
OUTPUTS = ("logits", "weights")
PERCENTILES = (50, 90, 99)
TIMEOUT_S = 60.0


class Server:
    """A connection to an ensemble, for the thread that opens it.

    Args:
        url: host:port.
        protocol: one of PORTS.
        model: name of the ensemble.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """

    def __init__(self, url: str, protocol: str, model: str) -> None:
        try:
            self._client = importlib.import_module(f"tritonclient.{protocol}")
        except (ImportError, RuntimeError):  # the latter is its own answer where only a part of it is installed
            raise MissingExtraError("tritonclient is not installed; pip install 'edgefuse[triton]'") from None
        self._url, self._model = url, model
        self._limits = {"client_timeout": TIMEOUT_S} if protocol == "grpc" else {}  # over HTTP it has one by itself
        self._connection = self._client.InferenceServerClient(url)

    def ask(self, tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [B, C] and weights [B, M] for the sensor tensors and presence of B rows.

        Raises:
            BackendError: nobody answers, or the server refuses the request.
        """
        datatype = importlib.import_module("tritonclient.utils").np_to_triton_dtype
        inputs = []
        for name, array in tensors.items():
            inputs.append(self._client.InferInput(name, list(array.shape), datatype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        wanted = [self._client.InferRequestedOutput(name) for name in OUTPUTS]
        try:
            found = self._connection.infer(self._model, inputs, outputs=wanted, **self._limits)
        except Exception as error:  # of gRPC, of sockets, or of tritonclient: they share no base class
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BackendError(
                f"no answer of {self._model} at {self._url}: {reason}; start tritonserver --model-repository with what "
                "`edgefuse export-triton` wrote, or give another --url, --protocol or --model"
            ) from None
        logits, weights = (found.as_numpy(name) for name in OUTPUTS)
        return logits, weights

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def request_for(preprocessor: Preprocessor, modalities: Sequence[str], examples: Sequence[Example]) -> Tensors:
    """What the ensemble takes for some examples: every sensor tensor, zeros where a sensor is missing, and presence.

    Raises:
        MediaError: a picture or sound cannot be decoded.
    """
    rows = []
    for example in examples:
        row = {"presence": np.array([[getattr(example, m) is not None for m in modalities]], np.float32)}  # [1, M]
        for modality in modalities:
            value = getattr(example, modality)
            if value is None:
                row |= preprocessor.empty(modality)
            else:
                row |= preprocessor.prepare(modality, preprocessor.decode(modality, value))
        rows.append(row)
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def measure(
    bundle_folder: str | Path,
    manifest: str | Path,
    *,
    url: str | None = None,
    protocol: str = "grpc",
    model: str | None = None,
    concurrency: int = 1,
    batch: int = 1,
    requests: int = 200,
    split: str = "test",
    limit: int = 256,
) -> dict[str, Any]:
    """Ask a server for the lines of a manifest.

    Args:
        bundle_folder: the bundle that the server's repository was written from.
        manifest: labelled data.
        url: host:port; this machine and the protocol's port where None.
        protocol: one of PORTS.
        model: name of the ensemble; that of the bundle where None.
        concurrency: requests that are on their way at the same time.
        batch: rows in a request.
        requests: how many are timed. Before, every line is asked once, for the accuracy and to warm up.
        split, limit: the lines.

    Returns:
        {model, url, protocol, concurrency, batch, requests, latency_ms: {p50, p90, p99}, rows_per_s, accuracy, n}.

    Raises:
        EdgefuseError: no server, tritonclient not installed, or bundle or manifest cannot be used.
    """
    for option, value in {"concurrency": concurrency, "batch": batch, "requests": requests, "limit": limit}.items():
        if value < 1:
            raise OptionError(f"--{option}: found {value}, it must be 1 or more")
    bundle = Bundle.open(bundle_folder)
    url, model = url or f"localhost:{PORTS[protocol]}", model or bundle.info.name
    examples = read_manifest(manifest, split=split, labels=bundle.info.labels, limit=limit)
    host = Preprocessor(bundle)
    groups = [examples[start : start + batch] for start in range(0, len(examples), batch)]
    asked = [request_for(host, bundle.info.modalities, group) for group in groups]
    connect = partial(Server, url, protocol, model)
    with closing(connect()) as server:
        logits = np.concatenate([server.ask(tensors)[0] for tensors in asked])  # [n, C]
    right = [bundle.info.labels[k] == e.label for k, e in zip(logits.argmax(axis=1), examples, strict=True)]
    took_ms, rows_per_s = _timed(connect, asked, concurrency, requests)
    told = {"model": model, "url": url, "protocol": protocol}
    asked_for = {"concurrency": concurrency, "batch": batch, "requests": len(took_ms)}
    latency_ms = {f"p{p}": float(np.percentile(took_ms, p)) for p in PERCENTILES}
    speed = {"latency_ms": latency_ms, "rows_per_s": rows_per_s}
    return {**told, **asked_for, **speed, "accuracy": float(np.mean(right)), "n": len(right)}


def _timed(
    connect: Callable[[], Server], asked: Sequence[Tensors], concurrency: int, requests: int
) -> tuple[list[float], float]:
    """Milliseconds of each request, and rows a second of all workers together."""
    begin = threading.Barrier(concurrency)
    turns = itertools.count()  # of all workers: next() on it is one step

    def work() -> tuple[float, float, int, list[float]]:
        """When this worker began and ended, its rows, and its times."""
        with closing(connect()) as server:
            try:
                server.ask(asked[0])  # opens the connection
            except BackendError:
                begin.abort()
                raise
            begin.wait()
            began_s, rows, took_ms = time.perf_counter(), 0, []
            while (turn := next(turns)) < requests:
                tensors = asked[turn % len(asked)]
                asked_s = time.perf_counter()
                server.ask(tensors)
                took_ms.append((time.perf_counter() - asked_s) * 1e3)
                rows += len(tensors["presence"])
            return began_s, time.perf_counter(), rows, took_ms

    with ThreadPoolExecutor(concurrency) as pool:
        futures = [pool.submit(work) for _ in range(concurrency)]
    # Those that waited for the one that failed have nothing to say.
    futures.sort(key=lambda future: isinstance(future.exception(), threading.BrokenBarrierError))
    began_s, ended_s, rows, took_ms = zip(*(future.result() for future in futures), strict=True)
    return list(itertools.chain(*took_ms)), sum(rows) / (max(ended_s) - min(began_s))


def main() -> None:
    """Measure, print JSON; one line and exit 1 where that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="the bundle that the repository was written from")
    parser.add_argument("manifest", type=Path, help="labelled data (.jsonl)")
    parser.add_argument("--url", help="host:port (default: this machine, the protocol's port)")
    parser.add_argument("--protocol", choices=PORTS, default="grpc")
    parser.add_argument("--model", help="name of the ensemble (default: the bundle's)")
    parser.add_argument("--concurrency", type=int, default=1, help="requests on their way at the same time")
    parser.add_argument("--batch", type=int, default=1, help="rows in a request")
    parser.add_argument("--requests", type=int, default=200, help="how many are timed")
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--limit", type=int, default=256, help="use this many lines, evenly spread")
    given = vars(parser.parse_args())
    try:
        print(json.dumps(measure(given.pop("bundle"), given.pop("manifest"), **given), indent=2))
    except EdgefuseError as error:
        sys.exit(f"triton_client: {error}")


if __name__ == "__main__":
    main()
