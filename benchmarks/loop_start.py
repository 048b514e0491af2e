"""How long `edgefuse run` takes from its start to its first answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path

LONGEST_S = 60.0


def first_answer_s(bundle: str | Path, arguments: Sequence[str], sensors: Collection[str] = ()) -> float:
    """Seconds from the start of the process to its first line in which all of `sensors` count.

    Args:
        bundle: its folder.
        arguments: of `edgefuse run`, without the bundle.
        sensors: modalities that must be in the answer; none takes the first line, whatever it stands on.

    Raises:
        RuntimeError: the process ended without such an answer, or took more than a minute.
    """
    command = [sys.executable, "-m", "edgefuse.runtime.cli", "run", str(bundle), *arguments]
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                taken_s = time.perf_counter() - started_s
                if all(json.loads(line).get("presence", {}).get(sensor) for sensor in sensors):
                    return taken_s
                if taken_s > LONGEST_S:
                    break
        finally:
            process.kill()
        raise RuntimeError(f"no answer from {', '.join(sensors) or 'any sensor'}: {process.communicate()[1].strip()}")
