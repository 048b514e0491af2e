"""Latency, throughput and accuracy of a Triton server that has what `edgefuse export-triton` wrote:

    python benchmarks/triton_client.py my_bundle my/manifest.jsonl --url localhost:8001 --concurrency 8

Every worker sends a request, waits for the answer and sends the next. Decoding, resizing and tokenising stay with the
client and are not in the times; what is on the way and in the server is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import Bundle
from edgefuse.runtime.errors import BackendError, EdgefuseError, MissingExtraError, OptionError
from edgefuse.runtime.manifest import Example, read_manifest
from edgefuse.runtime.preprocess import Preprocessor

PORTS = {"grpc": 8001, "http": 8000}  # Triton's own
PERCENTILES = (50, 90, 99)
TIMEOUT_S = 60.0


class Server:
    """One connection to an ensemble; each thread needs its own.

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
        except (ImportError, RuntimeError):  # tritonclient's own answer where its extra is missing
            raise MissingExtraError("tritonclient is not installed; pip install 'edgefuse[triton]'") from None
        self._url, self._model = url, model
        patience = {} if protocol == "grpc" else {"connection_timeout": TIMEOUT_S, "network_timeout": TIMEOUT_S}
        self._patience = {"client_timeout": TIMEOUT_S} if protocol == "grpc" else {}
        self._connection = self._client.InferenceServerClient(url, **patience)
        self._wanted = [self._client.InferRequestedOutput(name) for name in ("logits", "weights")]

    def ask(self, tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [B, C] and weights [B, M] for the sensor tensors and presence of B rows.

        Raises:
            BackendError: nobody answers, or the server refuses the request.
        """
        inputs = []
        for name, array in tensors.items():
            inputs.append(self._client.InferInput(name, list(array.shape), _datatype(array)))
            inputs[-1].set_data_from_numpy(array)
        try:
            found = self._connection.infer(self._model, inputs, outputs=self._wanted, **self._patience)
        except Exception as error:  # of gRPC, of gevent's sockets, or of tritonclient: they share no base class
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise BackendError(
                f"no answer of {self._model} at {self._url}: {reason}; start tritonserver --model-repository with what "
                "`edgefuse export-triton` wrote, or give another --url, --protocol or --model"
            ) from None
        return found.as_numpy("logits"), found.as_numpy("weights")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def _datatype(array: NDArray[Any]) -> str:
    found: str = importlib.import_module("tritonclient.utils").np_to_triton_dtype(array.dtype)
    return found


def request_for(preprocessor: Preprocessor, modalities: Sequence[str], examples: Sequence[Example]) -> Tensors:
    """What the ensemble takes for some examples: every sensor tensor, zeros where a sensor is missing, and presence.

    Raises:
        MediaError: a picture or sound cannot be decoded.
    """
    rows: list[Mapping[str, NDArray[Any]]] = []
    for example in examples:
        row: dict[str, NDArray[Any]] = {}
        for modality in modalities:
            value = getattr(example, modality)
            empty = value is None
            decoded = None if empty else preprocessor.decode(modality, value)
            row |= preprocessor.empty(modality) if empty else preprocessor.prepare(modality, decoded)
        presence = [[getattr(example, modality) is not None for modality in modalities]]
        rows.append({**row, "presence": np.array(presence, np.float32)})  # [1, M]
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
    servers = [Server(url, protocol, model) for _ in range(concurrency)]
    logits = np.concatenate([servers[0].ask(tensors)[0] for tensors in asked])  # [n, C]
    right = [bundle.info.labels[k] == e.label for k, e in zip(logits.argmax(axis=1), examples, strict=True)]
    ...
