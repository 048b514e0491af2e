"""What the loop says: a decision for each moment, and a notice when something begins or ends to be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)  # not frozen, which takes three times as long to make; read it only
class Decision:
    """What the model says of one moment, and what it stands on."""

    t_ms: float  # when it was ready, on the loop's clock: since boot, in a replay as recorded
    label: str  # the best label
    confidence: float  # softmax of its logit, 0..1
    weights: dict[str, float]  # modality -> what it weighed in the fusion, 0 where missing
    presence: dict[str, bool]  # modality -> whether it counted
    age_ms: dict[str, float]  # modality that counted -> how old its reading was when the decision was ready
    skew_ms: float  # the oldest of these less the newest
    stages_ms: dict[str, float]  # each part that ran, and the total from the newest reading taken to the answer
    dropped: dict[str, int]  # modality -> readings overwritten unseen since the start
    probabilities: tuple[float, ...]  # [C], softmax of all logits

    def document(self) -> dict[str, Any]:
        """What a JSON line says: everything but the probabilities, numbers with three decimals."""
        return {
            "t_ms": round(self.t_ms, 3),
            "label": self.label,
            "confidence": round(self.confidence, 4),
            "weights": _rounded(self.weights, 4),
            "presence": self.presence,
            "age_ms": _rounded(self.age_ms, 3),
            "skew_ms": round(self.skew_ms, 3),
            "stages_ms": _rounded(self.stages_ms, 3),
            "dropped": self.dropped,
        }


@dataclass(frozen=True, slots=True)
class Notice:
    """Something of the loop changed for worse or better; said once."""

    t_ms: float  # on the loop's clock
    about: str  # a modality, "backend", "loop" or "pace"
    is_well: bool  # whether it works again
    message: str  # one line: what happened, and what becomes of it


def _rounded(numbers: dict[str, float], digits: int) -> dict[str, float]:
    return {name: round(number, digits) for name, number in numbers.items()}
