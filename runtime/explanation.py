"""What an explanation holds, and the sentences that say what was measured and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FLAT = 0.01  # log-odds: what stays below it changes the odds by less than 1 %
METHOD = (
    "All numbers are log-odds of the label, ln(p / (1 - p)): a sensor's value is its exact Shapley value over every "
    "subset of the sensors given, from the head with none of them on, and a map is how far the log-odds fall while a "
    "patch takes the picture's mean colour, a window of the sound is muted, or a word is hidden. They say what this "
    "answer hangs on and not whether it is right; the model never saw such inputs in training, no sensor at all being "
    "one of them, and parts that can stand in for each other may all look unimportant."
)

Map = NDArray[np.float64]


class Word(NamedTuple):
    """A word of a text."""

    word: str
    importance: float | None  # how far the log-odds fall without it; None where the text is cut before it


@dataclass(frozen=True)
class Explanation:
    """What one answer hangs on, in log-odds of its label: ln(p / (1 - p)), a scale on which evidence adds up.

    Of a map, what speaks for the label is positive: the log-odds fall where it is taken away.
    """

    label: str  # what is explained
    answer: str  # the best label
    logit: float  # log-odds of the label with all that was given
    baseline_logit: float  # the same with nothing given: what the head answers from its placeholders
    shapley: dict[str, float]  # modality that was given -> its Shapley value; together logit - baseline_logit
    image_map: Map | None  # [rows, columns]
    audio_map: Map | None  # [cells]
    words: list[Word] | None
    stand_in: str | None  # what was read in place of a word; None where the vocabulary has no [MASK]
    seconds: dict[str, float]  # shapley and each map -> what it took to measure

    def document(self) -> dict[str, Any]:
        """What the JSON says."""
        return {
            "label": self.label,
            "answer": self.answer,
            "logit": self.logit,
            "baseline_logit": self.baseline_logit,
            "shapley": self.shapley,
            "image_map": None if self.image_map is None else self.image_map.tolist(),
            "audio_map": None if self.audio_map is None else self.audio_map.tolist(),
            "words": None if self.words is None else [word._asdict() for word in self.words],
            "seconds": self.seconds,
        }


def about_label(told: Explanation) -> str:
    """The label's probability, and the answer where that is another label."""
    said = f"{probability(told.logit)} likely to this model"
    return said if told.answer == told.label else f"{said}, which answers {told.answer}"


def about_sensors(told: Explanation) -> str:
    """What the bars of the sensors say."""
    many = ", averaged over every order in which they can come" if len(told.shapley) > 1 else ""
    return (
        f"From {probability(told.baseline_logit)} before any sensor to {probability(told.logit)} with all that was "
        f"given: what each of them adds{many}."
    )


def about_picture(falls: Map) -> str:
    """What the map over the picture says."""
    if is_flat(falls):
        return f"Flat: no patch of the picture changes the log-odds by {FLAT} or more, so nothing is drawn."
    (row, column), (rows, columns) = np.unravel_index(np.abs(falls).argmax(), falls.shape), falls.shape
    across, down = 100 * (column + 0.5) / columns, 100 * (row + 0.5) / rows
    effect = _effect(falls[row, column])
    return f"Covering it {across:.0f} % from the left and {down:.0f} % from the top changes most: {effect}."


def about_sound(falls: Map, given_s: float, heard_s: float) -> str:
    """What the map over the sound says, and what the model did not hear of it."""
    cell = int(np.abs(falls).argmax())
    said = f"Muting it around {(cell + 0.5) / len(falls) * heard_s:.2f} s changes most: {_effect(falls[cell])}."
    if is_flat(falls):
        said = f"Flat: no moment of the sound changes the log-odds by {FLAT} or more, so nothing is drawn."
    return said + (f" The model hears the first {heard_s:.3g} s of {given_s:.3g} s." if given_s > heard_s else "")


def about_words(words: Sequence[Word], stand_in: str | None) -> str:
    """What the numbers at the words say."""
    read = [word.importance for word in words if word.importance is not None]
    how = f"replaced by {stand_in}" if stand_in else "left out"
    said = f"How far the log-odds fall with one word {how}."
    if is_flat(read):
        said = f"Flat: no word, {how}, changes the log-odds by {FLAT} or more."
    unread = len(words) - len(read)
    return said + (f" The text was cut before the last {unread}, which the model did not read." if unread else "")


def costs(told: Explanation) -> str:
    """What the measurement took."""
    names = {"shapley": "sensors", "image_map": "picture", "audio_map": "sound", "words": "words"}
    each = ", ".join(f"{names[key]} {seconds:.3f} s" for key, seconds in told.seconds.items())
    return f"Measured by running the model itself again: {each}."


def is_flat(falls: Map | Sequence[float]) -> bool:
    """Whether nothing in a map changes the answer by an amount worth a look."""
    return not np.any(np.abs(falls) >= FLAT)


def strength(falls: Map | Sequence[float]) -> Map:
    """A map as -1..1 of full colour, all 0 where it is flat.

    Full is the largest value, but no less than 1, odds e times as high: a map in which little happens looks it.
    """
    values = np.asarray(falls, np.float64)
    return values * 0 if is_flat(values) else values / max(float(np.abs(values).max()), 1.0)


def probability(log_odds: float) -> str:
    """Log-odds as a percentage; never 0 or 100, which none are."""
    p = 1 / (1 + exp(-log_odds)) if log_odds > 0 else exp(log_odds) / (1 + exp(log_odds))
    if p < 0.001:
        return "< 0.1 %"
    return "> 99.9 %" if p > 0.999 else f"{100 * p:.1f} %"


def signed(value: float) -> str:
    """Two decimals with a sign, a true minus; what rounds to nothing has none."""
    text = f"{abs(value):.2f}"
    return text if text == "0.00" else ("+" if value > 0 else "\u2212") + text


def _effect(fall: float) -> str:
    return f"the log-odds {'fall' if fall > 0 else 'rise'} by {abs(fall):.2f}"
