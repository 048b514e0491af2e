"""Answers to many rows at once, columns in and columns out: what Ray Data and Spark call on each of their workers.

    dataset.map_batches(PredictBatches, fn_constructor_args=["my_bundle"], concurrency=8, batch_size=64)

It is built on the worker, from a path, so a bundle is never pickled.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backends import open_backend
from edgefuse.runtime.bundle import MODALITIES, Bundle
from edgefuse.runtime.errors import MediaError, OptionError
from edgefuse.runtime.predictor import Predictor, softmax

AT_ONCE = 64  # rows that are in memory as tensors
LABEL, CONFIDENCE, ERROR = "label", "confidence", "error"
Columns = dict[str, NDArray[Any]]


class PredictBatches:
    """A `Predictor` for batches of rows.

    Args:
        bundle: folder of the bundle, as every worker sees it.
        keep: columns of the input that are handed through, such as the name of the row.
        part_set, backend, threads: see `open_backend`.

    Raises:
        EdgefuseError: see `Bundle.open` and `open_backend`.
        OptionError: a column to keep has the name of one that is made here.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        keep: Sequence[str] = (),
        part_set: str | None = None,
        backend: str | None = None,
        threads: int = 0,
    ) -> None:
        opened = Bundle.open(bundle)
        self._modalities = opened.info.modalities
        self._keep = tuple(keep)
        made = {LABEL, CONFIDENCE, ERROR, *map(_weight_column, self._modalities)}
        if clash := made.intersection(keep):
            raise OptionError(f"keep: found {', '.join(sorted(clash))}, which is made here; rename it before")
        self._labels = np.array(opened.info.labels, object)  # [C]
        self._device = open_backend(opened, backend, threads, part_set)
        self._predictor = Predictor(opened, self._device)

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> Columns:
        """Answer each row as `Predictor.predict` would.

        Args:
            batch: any of the columns image, audio, text and signal, a value a row, as `predict` takes them: a path, the
                bytes of a file, or an array (so an image column may be uint8 [B, H, W, 3]). None, NaN, "" and b"" say
                that the row lacks the sensor. Other columns are passed over.

        Returns:
            The columns of `keep`; label; confidence, 0..1; weight_<modality>, 0 where missing; and error, "" but where
            `predict` would raise MediaError: one bad file among a million does not end a job. Such a row has the label
            "", the confidence NaN and weights 0.

        Raises:
            OptionError: no column of a sensor, or one of `keep` is not there.
        """
        sensors = [modality for modality in MODALITIES if modality in batch]
        if not sensors or any(column not in batch for column in self._keep):
            wanted = ", ".join([f"one of {'/'.join(self._modalities)}", *self._keep])
            raise OptionError(f"found the columns {', '.join(batch) or 'none'}; a batch needs {wanted}")
        rows = [dict(zip(sensors, values, strict=True)) for values in zip(*(batch[m] for m in sensors), strict=True)]
        weights = [_weight_column(modality) for modality in self._modalities]
        answers: Columns = {
            LABEL: np.full(len(rows), "", object),
            CONFIDENCE: np.full(len(rows), np.nan, np.float32),
            **{column: np.zeros(len(rows), np.float32) for column in weights},
            ERROR: np.full(len(rows), "", object),
        }
        for start in range(0, len(rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self._answer(rows[part], {name: column[part] for name, column in answers.items()})
        return {**{column: np.asarray(batch[column]) for column in self._keep}, **answers}

    def close(self) -> None:
        """Free the device; the end of the process does too."""
        self._device.close()

    def _answer(self, rows: Sequence[Mapping[str, Any]], into: Columns) -> None:
        """Write the answers to a few rows into views of the columns."""
        inputs: dict[int, dict[str, Tensors]] = {}  # row -> modality -> its tensors, a batch of one
        for number, row in enumerate(rows):
            try:
                inputs[number] = self._prepared(row)
            except MediaError as error:
                into[ERROR][number] = str(error)
        if not inputs:
            return
        good = list(inputs)
        logits, weights = self._fuse(list(inputs.values()))
        into[LABEL][good] = self._labels[logits.argmax(axis=1)]
        into[CONFIDENCE][good] = softmax(logits).max(axis=1)
        for column, modality in enumerate(self._modalities):
            into[_weight_column(modality)][good] = weights[:, column]

    def _prepared(self, row: Mapping[str, Any]) -> dict[str, Tensors]:
        """The tensors of the sensors that a row has."""
        given = {modality: value for modality, value in row.items() if not _is_missing(value)}
        if not given:
            raise MediaError(f"no sensor given; this model takes: {', '.join(self._modalities)}")
        host = self._predictor.preprocessor
        return {modality: host.prepare(modality, host.decode(modality, value)) for modality, value in given.items()}

    def _fuse(self, inputs: Sequence[Mapping[str, Tensors]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [B, C] and weights [B, M]; each modality is encoded for the rows that have it."""
        presence = np.array([[m in row for m in self._modalities] for row in inputs], np.float32)  # [B, M]
        tokens = {}
        for modality in self._modalities:
            has = [number for number, row in enumerate(inputs) if modality in row]
            if has:
                given = [inputs[number][modality] for number in has]
                stacked = {name: np.concatenate([tensors[name] for tensors in given]) for name in given[0]}
                found = self._predictor.encode(modality, stacked)  # of those rows, [b, N, D]
                tokens[modality] = np.zeros((len(inputs), *found.shape[1:]), np.float32)  # [B, N, D]
                tokens[modality][has] = found
        return self._predictor.fuse(tokens, presence)


def _weight_column(modality: str) -> str:
    return f"weight_{modality}"


def _is_missing(value: Any) -> bool:
    """What tables hold where there is nothing."""
    if isinstance(value, (str, bytes)):
        return not value
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))
