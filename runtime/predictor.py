"""The user's way in: a bundle and a backend give answers.

The predictor decides which parts run; it knows nothing of files (bundle.py), devices (backend.py) or sensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefuse.runtime.backend import Parts, Tensors
from edgefuse.runtime.backends import open_backend
from edgefuse.runtime.bundle import HEAD, Bundle, token_tensor
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.lanes import Lanes
from edgefuse.runtime.media import Pcm, Pixels
from edgefuse.runtime.preprocess import Preprocessor
from edgefuse.runtime.signals import Rows

File = str | Path | bytes  # the path of a file, or what is in it
Image = File | Pixels  # a picture file, or uint8 RGB [H, W, 3] in 0..255
Audio = File | Pcm  # a sound file, or float32 mono PCM [T] in [-1, 1] at the bundle's sample rate
Signal = File | Rows  # a .csv or .npy file, or float32 rows [n, F] in the sensors' units, the newest last
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says of one moment."""

    label: str  # the best label
    confidence: float  # softmax of its logit, 0..1
    weights: dict[str, float]  # modality -> what it weighed in the fusion, 0 where missing
    stages_ms: dict[str, float]  # decode, preprocess, each part that ran, total; encoders may run side by side


class Predictor:
    """Answers from the parts of `bundle`, run by `backend`."""

    def __init__(self, bundle: Bundle, backend: Parts) -> None:
        self.info = bundle.info
        self.preprocessor = Preprocessor(bundle)
        self._backend = backend

    def predict(
        self,
        *,
        image: Image | None = None,
        audio: Audio | None = None,
        text: str | None = None,
        signal: Signal | None = None,
    ) -> Answer:
        """The answer to one picture, sound, text and signal, any of which may be missing.

        Parts are loaded before the clock starts, so `stages_ms` holds work only.

        Raises:
            MediaError: nothing given, a sensor that the model does not have, or something that cannot be decoded.
        """
        sensors: dict[str, Any] = {"image": image, "audio": audio, "text": text, "signal": signal}
        given = {modality: value for modality, value in sensors.items() if value is not None}
        if not given:
            raise MediaError(f"no sensor given; this model takes: {', '.join(self.info.modalities)}")
        for part in (*self.info.modalities, HEAD):
            if part == HEAD or part in given:
                self._backend.load(part)
        laps = _Laps()
        decoded = {modality: self.preprocessor.decode(modality, value) for modality, value in given.items()}
        laps.end("decode")
        inputs = {modality: self.preprocessor.prepare(modality, value) for modality, value in decoded.items()}
        laps.end("preprocess")
        tokens, took_ms = self.encode_each(inputs)
        laps.side_by_side(took_ms)
        presence = np.array([[modality in given for modality in self.info.modalities]], np.float32)  # [1, M]
        logits, weights = self.fuse(tokens, presence)
        laps.end(HEAD)
        best = int(logits[0].argmax())
        return Answer(
            label=self.info.labels[best],
            confidence=float(softmax(logits[0])[best]),
            weights=dict(zip(self.info.modalities, weights[0].tolist(), strict=True)),
            stages_ms=laps.finish(),
        )

    def encode(self, modality: str, inputs: Tensors) -> Floats:
        """The tokens [B, N, D] of one modality's sensor tensors (see SENSOR_TENSORS), batch first."""
        return self._backend.run(modality, inputs)[token_tensor(modality)]

    def encode_each(self, inputs: Mapping[str, Tensors]) -> tuple[dict[str, Floats], dict[str, float]]:
        """The tokens [B, N, D] of each modality in `inputs`, and the ms of each.

        Those of one query are encoded side by side where the backend can; of a batch, whose rows are dealt out, one
        modality after the other. Load the parts before: threads of a part that a lane opens keep to its cores.
        """
        is_batch = any(len(array) > 1 for tensors in inputs.values() for array in tensors.values())
        lanes = Lanes(1) if is_batch else self._backend.lanes
        return lanes.run({modality: partial(self.encode, modality, tensors) for modality, tensors in inputs.items()})

    def fuse(self, tokens: Mapping[str, Floats], presence: Floats) -> tuple[Floats, Floats]:
        """Logits [B, C] and weights [B, M] from the tokens [B, N, D] of each modality.

        Args:
            tokens: a modality that no example of the batch has may be left out.
            presence: [B, M], 1 where the example has the modality, else 0; columns as in `BundleInfo.modalities`.
        """
        inputs: dict[str, NDArray[Any]] = {"presence": presence}
        for modality, spec in self.info.tokens.items():
            missing = np.zeros((len(presence), spec.count, spec.dim), np.float32)  # [B, N, D]
            inputs[token_tensor(modality)] = tokens.get(modality, missing)
        outputs = self._backend.run(HEAD, inputs)
        return outputs["logits"], outputs["weights"]


def predict_once(
    bundle: str | Path,
    *,
    image: Image | None = None,
    audio: Audio | None = None,
    text: str | None = None,
    signal: Signal | None = None,
    part_set: str | None = None,
    backend: str | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Open a bundle, answer once and close it; the arguments are those of `open_backend` and `predict`.

    Raises:
        EdgefuseError: see `Bundle.open`, `open_backend` and `Predictor.predict`.
    """
    opened = Bundle.open(bundle)
    with open_backend(opened, backend, threads, part_set) as device:
        return asdict(Predictor(opened, device).predict(image=image, audio=audio, text=text, signal=signal))


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


class _Laps:
    """A stopwatch for consecutive stages."""

    def __init__(self) -> None:
        self._start = self._last = perf_counter()
        self._stages_ms: dict[str, float] = {}

    def end(self, stage: str) -> None:
        now = perf_counter()
        self._stages_ms[stage] = (now - self._last) * 1e3
        self._last = now

    def side_by_side(self, took_ms: Mapping[str, float]) -> None:
        """Of stages that may have run at the same time, each its own time."""
        self._stages_ms |= took_ms
        self._last = perf_counter()

    def finish(self) -> dict[str, float]:
        return {**self._stages_ms, "total": (self._last - self._start) * 1e3}
