"""The distinct pictures, sounds and sentences of some examples, as the tensors that a part takes, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.errors import ManifestError, MediaError
from edgefuse.runtime.manifest import Example
from edgefuse.runtime.preprocess import Preprocessor


class Samples:
    """One modality of some examples, each distinct value once; nothing is decoded before it is asked for.

    Args:
        preprocessor: of the bundle.
        examples: any, with or without this modality.
        modality: "image", "audio" or "text".
    """

    def __init__(self, preprocessor: Preprocessor, examples: Sequence[Example], modality: str) -> None:
        self._preprocessor = preprocessor
        self.modality = modality
        self._first_lines: dict[str, str] = {}  # distinct value -> the line that uses it first
        number: dict[str, int] = {}
        rows = []
        for example in examples:
            value = getattr(example, modality)
            if value is not None:
                self._first_lines.setdefault(value, example.where)
                number.setdefault(value, len(number))
            rows.append(-1 if value is None else number[value])
        self.rows = np.array(rows, np.int64)  # [n], the row of each example among the values, -1 where it has none

    def __len__(self) -> int:
        return len(self._first_lines)

    def batches(self, size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The tensors of `size` values at a time, batch first, in the order of `rows`.

        Raises:
            ManifestError: a file cannot be decoded; names the first line that uses it.
        """
        values = list(self._first_lines)
        for start in range(0, len(values), size):
            prepared = [self._prepare(value) for value in values[start : start + size]]
            yield {name: np.concatenate([tensors[name] for tensors in prepared]) for name in prepared[0]}

    def _prepare(self, value: str) -> dict[str, NDArray[Any]]:
        try:
            return self._preprocessor.prepare(self.modality, self._preprocessor.decode(self.modality, value))
        except MediaError as error:
            raise ManifestError(f"{self._first_lines[value]}: {error}") from None
