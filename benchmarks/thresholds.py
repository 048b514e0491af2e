"""`--fail-on`: what must not come out of a bench, as "cpu.p50_ms>20", "retention<0.99" or "slower"."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgefuse.benchmarks.figures import SLOWER
from edgefuse.runtime.errors import UsageError

_OPERATORS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FORM = re.compile(rf"\s*([\w.-]+)\s*(?:(<=|>=|<|>)\s*({_NUMBER})\s*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One thing that must not come out."""

    text: str  # as it was given
    name: str  # of a figure
    comparison: str = ""  # one of <, <=, >, >=; "" fails where the figure says anything at all
    limit: float = 0.0


def parse(text: str, names: Collection[str]) -> Threshold:
    """Read NAME<NUMBER, with any of <, <=, >, >=, or "slower".

    Args:
        text: the expression; blanks between its words do not matter.
        names: figures that the report will have.

    Raises:
        UsageError: it does not read like that, or names no figure of the report.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(f'--fail-on {text!r} cannot be read; write NAME<NUMBER or NAME>NUMBER, as in "retention<0.99"')
    name, comparison, number = found.groups()
    if name == SLOWER and name not in names:
        raise UsageError(f"--fail-on {text!r} needs something to be compared with; add --against OTHER/report.json")
    if name not in names:
        raise UsageError(f"--fail-on {text!r}: no figure {name!r} in this report; it has: {', '.join(sorted(names))}")
    if (name == SLOWER) != (comparison is None):
        form = f"{name} stands alone" if name == SLOWER else f"{name} needs a limit, as in {name}>20"
        raise UsageError(f"--fail-on {text!r}: {form}")
    return Threshold(text, name, comparison or "", float(number or 0))


def broken(thresholds: Sequence[Threshold], figures: Mapping[str, Any]) -> list[str]:
    """A line for each threshold that is broken; a figure that was not measured breaks any."""
    return [line for threshold in thresholds if (line := _broken(threshold, figures[threshold.name]))]


def _broken(threshold: Threshold, value: Any) -> str:
    if value is None:
        return f"--fail-on {threshold.text!r}: {threshold.name} was not measured"
    if not threshold.comparison:
        return f"--fail-on {threshold.text!r}: {value}" if value else ""
    failed = _OPERATORS[threshold.comparison](value, threshold.limit)
    return f"--fail-on {threshold.text!r}: {threshold.name} is {value:.6g}" if failed else ""
