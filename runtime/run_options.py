"""What a run is asked for, and what cannot be asked for together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgefuse.runtime.bundle import MODALITIES, MODALITY_TABLE, BundleInfo
from edgefuse.runtime.errors import OptionError

STDIN = "-"
SENTENCE_LIMIT_MS = 10_000.0  # how long a sentence that a gate found counts
SENSORS = {modality: row.option for modality, row in MODALITY_TABLE.items()}  # modality -> the option that gives it


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a run; those of `edgefuse run` have the same names.

    Raises:
        OptionError: a value that cannot be, or options that exclude each other.
    """

    camera: int | str | Path | None = None  # number, video, folder of pictures, URL, or GStreamer pipeline
    mic: int | str | Path | None = None  # number or name of a device, sound file, or "-" for PCM on stdin
    text: str | None = None  # words, or "-" for the lines of stdin
    signal: str | Path | None = None  # a table of numbers, played at its own rate, or "-" for CSV lines on stdin
    gate: str = "off"  # what sound counts: off (all), energy, silero or silero=model.onnx
    backend: str | None = None  # see backends.py
    threads: int = 0  # CPU threads of all parts together; 0 takes every core but one
    limits_ms: Mapping[str, float | None] = field(default_factory=dict)  # age from which a reading is missing
    max_rate: float | None = None  # decisions per second
    count: int | None = None  # end after so many decisions
    alarms: Sequence[str] = ()  # see parse_alarm of alarms.py
    webhook: str | None = None  # URL that gets the events of the alarms
    record: str | Path | None = None  # new folder that gets every reading
    replay: str | Path | None = None  # recording that stands in for the sensors
    speed: float = 0.0  # of a replay: times as fast as recorded; 0 does not wait
    web: int | None = None  # port of the page
    web_host: str = "127.0.0.1"  # address that the page listens on

    @property
    def limits(self) -> dict[str, float | None]:
        """The limits of the loop: a sentence found by a gate counts longer than a window of sound."""
        return {**({} if self.gate == "off" else {"audio": SENTENCE_LIMIT_MS}), **self.limits_ms}

    def __post_init__(self) -> None:
        given = [name for name in SENSORS.values() if getattr(self, name) is not None]
        if self.replay is not None and (given or self.record is not None):
            raise OptionError(f"a replay brings its own sensors; leave {', '.join(given) or 'record'} out")
        if self.replay is None and not given and self.web is None:
            raise OptionError(f"no sensor given; give {', '.join(SENSORS.values())}, web or replay")
        from_stdin = [name for name in given if getattr(self, name) == STDIN]
        if len(from_stdin) > 1:
            raise OptionError(f"{' and '.join(from_stdin)} cannot both come from stdin; give a device, file or words")
        if self.webhook is not None and not self.alarms:
            raise OptionError("a webhook gets the events of alarms; give an alarm too")
        for name, value in (("max_rate", self.max_rate), ("count", self.count), *self.limits_ms.items()):
            if value is not None and not 0 < value < math.inf:
                raise OptionError(f"{name} is {value}, it must be more than 0")
        if not 0 <= self.speed < math.inf:
            raise OptionError(f"speed is {self.speed}; give 1 for as recorded, 0 for as fast as it goes")

    @property
    def gap_s(self) -> float:
        """Least time between two decisions."""
        return 0.0 if self.max_rate is None else 1 / self.max_rate

    def takes_questions(self, info: BundleInfo) -> bool:
        """Whether texts come from the page."""
        return self.web is not None and self.replay is None and self.text != STDIN and info.text is not None

    def check(self, info: BundleInfo) -> None:
        """Refuse a sensor or a limit that the model has no use for.

        Raises:
            OptionError: there is one.
        """
        asked = {modality: name for modality, name in SENSORS.items() if getattr(self, name) is not None}
        asked |= {modality: f"limit {modality}" for modality in self.limits_ms}
        for modality, name in asked.items():
            if modality not in info.modalities:
                raise OptionError(
                    f"{name}: the model has no {modality} encoder; it takes: {', '.join(info.modalities)}"
                )


def parse_limits(specs: Sequence[str]) -> dict[str, float | None]:
    """Read "image=1000" and "text=none": modality -> milliseconds after which its reading is missing, None for never.

    Raises:
        OptionError: not of this form.
    """
    limits: dict[str, float | None] = {}
    for spec in specs:
        modality, _, limit = spec.partition("=")
        try:
            limits[modality] = None if limit == "none" else float(limit)
        except ValueError:
            modality = ""
        if modality not in MODALITIES:
            raise OptionError(
                f"limit {spec!r} cannot be read; give {', '.join(MODALITIES)} with milliseconds or none, as image=1000"
            )
    return limits
