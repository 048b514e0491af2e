"""`edgefuse explain`: measures what one answer of a bundle hangs on, and says it as JSON, as a page or a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from edgefuse.runtime.attribution import (
    Moment,
    audio_map,
    image_map,
    shapley_values,
    word_importance,
)
from edgefuse.runtime.backends import open_backend
from edgefuse.runtime.bundle import HEAD, Bundle, BundleInfo
from edgefuse.runtime.errors import BundleError, MediaError
from edgefuse.runtime.explain_page import page
from edgefuse.runtime.explain_picture import picture
from edgefuse.runtime.explanation import Explanation
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.predictor import Audio, Image, Predictor, Signal
from edgefuse.runtime.tokenizer import MASK_TOKEN

FORMS = {".html": page, ".png": picture}
Measured = TypeVar("Measured")


def explain(
    bundle: str | Path,
    *,
    image: Image | None = None,
    audio: Audio | None = None,
    text: str | None = None,
    signal: Signal | None = None,
    label: str | None = None,
    out: str | Path | None = None,
    part_set: str | None = None,
    backend: str | None = None,
    threads: int = 0,
) -> dict[str, Any]:
    """Explain what a bundle answers to one picture, sound, text and signal, any of which may be missing.

    Args:
        label: what to explain; None takes the best one.
        out: an .html or .png file to write as well.
        part_set, backend, threads: see `open_backend`.

    Returns:
        `Explanation.document`, and `out` where something was written.

    Raises:
        MediaError: nothing given, something that cannot be decoded, no such label, or `out` is of another kind.
        BundleError, BackendError, EngineError, MissingExtraError: see `open_backend` and `Moment`.
    """
    if out is not None and Path(out).suffix.lower() not in FORMS:
        raise MediaError(f"{out}: an explanation is written as {' or '.join(FORMS)}; change the end of its name")
    opened = Bundle.open(bundle)
    sensors = {"image": image, "audio": audio, "text": text, "signal": signal}
    with open_backend(opened, backend, threads, part_set) as device:
        predictor = Predictor(opened, device)
        decoded = {m: predictor.preprocessor.decode(m, value) for m, value in sensors.items() if value is not None}
        for part in (*decoded, HEAD):
            device.load(part)
        explanation = explain_decoded(predictor, decoded, label)
    said = explanation.document()
    if out is not None:
        write_atomic(out, FORMS[Path(out).suffix.lower()](explanation, decoded, opened.info))
        said["out"] = str(out)
    return said


def explain_decoded(predictor: Predictor, decoded: Mapping[str, Any], label: str | None = None) -> Explanation:
    """Explain the answer to what `Preprocessor.decode` returned, modality by modality.

    Raises:
        MediaError, BundleError, BackendError: as `explain`.
    """
    if not decoded:
        raise MediaError(f"no sensor given; this model takes: {', '.join(predictor.info.modalities)}")
    number = _label_number(predictor.info, label)
    inputs = {m: predictor.preprocessor.prepare(m, value) for m, value in decoded.items()}
    tokenizer, text = predictor.preprocessor.tokenizer, decoded.get("text")
    seconds: dict[str, float] = {}

    def timed(name: str, measure: Callable[[], Measured]) -> Measured:
        start = perf_counter()
        found = measure()
        seconds[name] = perf_counter() - start
        return found

    moment = timed("shapley", lambda: Moment(predictor, inputs, number))
    return Explanation(
        label=predictor.info.labels[moment.label],
        answer=predictor.info.labels[moment.answer],
        logit=float(moment.worth[-1]),
        baseline_logit=float(moment.worth[0]),
        shapley=shapley_values(tuple(inputs), moment.worth),
        image_map=timed("image_map", lambda: image_map(moment)) if "image" in inputs else None,
        audio_map=timed("audio_map", lambda: audio_map(moment)) if "audio" in inputs else None,
        words=timed("words", lambda: word_importance(moment, tokenizer, text)) if tokenizer and text else None,
        stand_in=MASK_TOKEN if tokenizer and tokenizer.mask_id is not None else None,
        seconds=seconds,
    )


def _label_number(info: BundleInfo, label: str | None) -> int | None:
    if len(info.labels) == 1:
        raise BundleError(
            f"this model has one label, {info.labels[0]!r}, and always answers it; there is nothing to explain"
        )
    if label is None:
        return None
    if label not in info.labels:
        raise MediaError(f"no label {label!r}; this model has: {', '.join(info.labels)}")
    return info.labels.index(label)
