"""What one answer hangs on: the model's parts are run again without a sensor, a patch, a moment or a word."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, combinations
from math import ceil, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import BackendError
from edgefuse.runtime.explanation import Map, Word
from edgefuse.runtime.predictor import Floats, Predictor
from edgefuse.runtime.preprocess import Tokenizer

PICTURE_CELLS, SOUND_CELLS = 16, 32  # of a map: along the longer side of a picture, over the length of a sound


class Moment:
    """What was sensed at one moment, and the log-odds of a label as anything is taken from it.

    Each run has a batch of one, as a decision has: the rows of a batch share the scales of dynamic INT8, so none of
    them would be quite what a decision computes.

    Args:
        predictor: runs the parts.
        inputs: modality that was given -> its sensor tensors, batch of one.
        label: the number of the label; None takes the best one.

    Raises:
        BackendError: the model does not answer with numbers.
    """

    def __init__(self, predictor: Predictor, inputs: Mapping[str, Tensors], label: int | None = None) -> None:
        self.inputs = inputs
        self._predictor = predictor
        self._tokens = {m: predictor.encode(m, tensors) for m, tensors in inputs.items()}
        logits = np.stack([self._logits(given, self._tokens) for given in coalitions(tuple(inputs))])  # [2^M, C]
        self.answer = int(logits[-1].argmax())
        self.label = self.answer if label is None else label
        self.worth = _finite(log_odds(logits, self.label))  # [2^M], of each coalition

    def fall(self, modality: str, tensors: Tensors) -> float:
        """How far the log-odds fall when the sensor of `modality` gives `tensors`; the others keep their tokens."""
        tokens = {**self._tokens, modality: self._predictor.encode(modality, tensors)}
        return float(self.worth[-1] - _finite(log_odds(self._logits(self.inputs, tokens), self.label)))

    def _logits(self, given: Collection[str], tokens: Mapping[str, Floats]) -> Floats:
        presence = np.array([[m in given for m in self._predictor.info.modalities]], np.float32)  # [1, M]
        logits, _ = self._predictor.fuse(tokens, presence)  # [1, C]
        return np.asarray(logits[0])


def log_odds(logits: NDArray[Any], label: int) -> NDArray[np.float64]:
    """ln(p / (1 - p)) of a label's probability p, over the last axis: its logit less the log-sum-exp of the others.

    Unlike the logit itself it stays the same when all logits rise together, which no answer shows.
    """
    others = np.delete(logits.astype(np.float64), label, axis=-1)
    peak = others.max(axis=-1, keepdims=True)
    return np.asarray(logits[..., label] - peak[..., 0] - np.log(np.exp(others - peak).sum(axis=-1)))


def coalitions(players: Sequence[str]) -> list[tuple[str, ...]]:
    """All 2^M subsets, none first and all last."""
    return list(chain.from_iterable(combinations(players, size) for size in range(len(players) + 1)))


def shapley_values(players: Sequence[str], worth: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """The Shapley value of each player, exact; they add up to the worth of all less that of none.

    phi_i = sum over the coalitions S without i of |S|! (M - |S| - 1)! / M! * (v(S with i) - v(S)): what i adds to
    those before it, averaged over all orders to come in (Shapley 1953, A value for n-person games).

    Args:
        players: M names.
        worth: v, the worth of each of `coalitions(players)`.
    """
    value = dict(zip(map(frozenset, coalitions(players)), map(float, worth), strict=True))
    count = len(players)
    share = [factorial(size) * factorial(count - size - 1) / factorial(count) for size in range(count)]
    return {
        player: sum(share[len(s)] * (value[s | {player}] - value[s]) for s in value if player not in s)
        for player in players
    }


def picture_stride(height: int, width: int) -> int:
    """Pixels that the patch moves at a time, and the side of a cell of the map; the patch is two of them wide."""
    return ceil(max(height, width) / PICTURE_CELLS)


def sound_stride(samples: int) -> int:
    """Samples that the silent window moves at a time, and the length of a cell; the window is two of them long."""
    return ceil(samples / SOUND_CELLS)


def image_map(moment: Moment) -> Map:
    """Fall of the log-odds, [rows, columns], where a patch covers the picture (Zeiler & Fergus 2014, occlusion).

    The patch has the mean colour of the picture and not grey, which in some pictures is a thing by itself.
    """
    (name,) = SENSOR_TENSORS["image"]
    pixels = moment.inputs["image"][name]  # uint8 [1, H, W, 3]
    height, width = pixels.shape[1:3]
    stride = picture_stride(height, width)
    colour = np.rint(pixels.mean(axis=(0, 1, 2))).astype(np.uint8)

    def fall(rows: slice, columns: slice) -> float:
        covered = pixels.copy()
        covered[:, rows, columns] = colour
        return moment.fall("image", {name: covered})

    falls = np.array([[fall(r, c) for c in _windows(width, stride)] for r in _windows(height, stride)])
    by_row = _per_cell(falls, height, stride)  # [rows, windows across]
    return np.ascontiguousarray(_per_cell(by_row.T, width, stride).T)


def audio_map(moment: Moment) -> Map:
    """Fall of the log-odds, [cells], where a window of the sound is muted."""
    (name,) = SENSOR_TENSORS["audio"]
    pcm = moment.inputs["audio"][name]  # [1, T]
    samples = pcm.shape[1]
    stride = sound_stride(samples)

    def fall(window: slice) -> float:
        muted = pcm.copy()
        muted[:, window] = 0.0
        return moment.fall("audio", {name: muted})

    return _per_cell(np.array([fall(window) for window in _windows(samples, stride)]), samples, stride)


def word_importance(moment: Moment, tokenizer: Tokenizer, text: str) -> list[Word]:
    """Fall of the log-odds without each word of `text`: [MASK] in its place, or left out where there is no [MASK]."""
    tensors = moment.inputs["text"]
    return [
        Word(word, moment.fall("text", _without(tokenizer, tensors, places)) if places else None)
        for word, places in tokenizer.words(text)
    ]


def _windows(size: int, stride: int) -> list[slice]:
    """Windows of two strides, a stride apart, that together cover `size`; the last one may be cut."""
    return [slice(start * stride, (start + 2) * stride) for start in range(max(1, ceil(size / stride) - 1))]


def _per_cell(falls: Map, size: int, stride: int) -> Map:
    """What the windows along the first axis say of each cell of one stride: the mean of those that cover it."""
    ends = [(1, 1)] + [(0, 0)] * (falls.ndim - 1)
    padded = np.pad(falls, ends, mode="edge")  # the first and the last cell have one window each
    return np.asarray((padded[:-1] + padded[1:]) / 2)[: ceil(size / stride)]


def _without(tokenizer: Tokenizer, tensors: Tensors, places: Sequence[int]) -> Tensors:
    """Ids and mask [1, L] without the pieces at `places`."""
    ids_name, mask_name = SENSOR_TENSORS["text"]
    ids, mask = tensors[ids_name].copy(), tensors[mask_name].copy()
    if tokenizer.mask_id is not None:
        ids[:, places] = tokenizer.mask_id
    else:  # what follows moves up: a hole in the mask is something that no text makes
        kept = np.delete(np.arange(ids.shape[1]), places)
        ids[:, : len(kept)], mask[:, : len(kept)] = ids[:, kept], mask[:, kept]
        ids[:, len(kept) :], mask[:, len(kept) :] = tokenizer.pad_id, 0
    return {ids_name: ids, mask_name: mask}


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not np.isfinite(values).all():
        raise BackendError(
            "the model answers with NaN or infinite logits; run `edgefuse parity` to see where they begin"
        )
    return values
