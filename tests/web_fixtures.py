"""What a running loop would say, made up: decisions, notices, alarms and readings for tests of what shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgefuse.runtime.alarms import AlarmEvent
from edgefuse.runtime.bundle import AudioSpec, BundleInfo, ImageSpec, PartInfo, TextSpec, TokenSpec, part_file
from edgefuse.runtime.decision import Decision, Notice
from edgefuse.runtime.mailbox import Mailbox

MODALITIES = ("image", "audio", "text")


def contract(labels: Sequence[str] = ("blue", "green", "red")) -> BundleInfo:
    return BundleInfo(
        name="tiny",
        labels=tuple(labels),
        image=ImageSpec(height=8, width=8),
        audio=AudioSpec(sample_rate=16_000, samples=160),
        text=TextSpec(max_tokens=4),
        tokens={modality: TokenSpec(count=1, dim=3) for modality in MODALITIES},
        parts={
            "fp32": {part: PartInfo(file=part_file("fp32", part), precision="fp32") for part in (*MODALITIES, "head")}
        },
    )


def mailbox() -> Mailbox:
    """One that counts and holds nothing."""
    return Mailbox(lambda modality: {}, MODALITIES)


def decision(label: str = "red", confidence: float = 0.9, *, total_ms: float = 4.0, text: bool = True) -> Decision:
    """A decision for `label` of blue, green and red; without text where it is said so."""
    weights = {"image": 0.5, "audio": 0.2, "text": 0.3 * text}
    ages_ms = {"image": 12.0, "audio": 61.0} | ({"text": 2500.0} if text else {})
    return Decision(
        t_ms=1000.0,
        label=label,
        confidence=confidence,
        weights=weights,
        presence={"image": True, "audio": True, "text": text},
        age_ms=ages_ms,
        skew_ms=max(ages_ms.values()) - min(ages_ms.values()),
        stages_ms={"image": 2.5, "head": 0.25, "total": total_ms},
        dropped={"image": 3, "audio": 0, "text": 0},
        probabilities=((1 - confidence) / 2, (1 - confidence) / 2, confidence),
    )


def broken() -> Decision:
    """One of a model that overflows."""
    return decision(confidence=math.nan)


def trouble(about: str, is_well: bool = False, message: str = "camera 0 gives nothing") -> Notice:
    return Notice(0.0, about, is_well, message)


def alarm(name: str, begins: bool = True) -> AlarmEvent:
    return AlarmEvent("start" if begins else "stop", name, 0.0, 0.9, 0.9, 0.0)
