"""The history: whole lines, whoever writes at the same time, and nothing lost where a write fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from edgefuse.benchmarks.history import append

WRITER = (
    "import sys\nfrom pathlib import Path\nfrom edgefuse.benchmarks.history import append\n"
    "for number in range(50): append(Path(sys.argv[1]), {'writer': sys.argv[2], 'number': number, 'long': 'x' * 5000})"
)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_run_is_a_line_behind_the_others(tmp_path):
    path = tmp_path / "new" / "history.jsonl"

    append(path, {"name": "ä", "p50_ms": 1.5})
    append(path, {"name": "b", "p50_ms": None})

    assert path.read_text(encoding="utf-8") == '{"name":"ä","p50_ms":1.5}\n{"name":"b","p50_ms":null}\n'


def test_lines_of_several_processes_stay_whole(tmp_path):
    path = tmp_path / "history.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, path, name]) for name in "ab"]

    assert [writer.wait() for writer in writers] == [0, 0]
    found = lines(path)
    assert len(found) == 100
    for name in "ab":
        assert [line["number"] for line in found if line["writer"] == name] == list(range(50))


def test_a_line_that_another_program_left_open_is_closed_first(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"a":1}')

    append(path, {"b": 2})

    assert lines(path) == [{"a": 1}, {"b": 2}]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "history.jsonl"
    append(path, {"a": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))

    with pytest.raises(OSError, match="No space left"):
        append(path, {"b": 2})

    assert lines(path) == [{"a": 1}]
