"""Tests of ask_parser.py, with a parser that dies on demand in the place of TensorRT-RTX's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgefuse.optimize.ask_parser import Answer, ask
from edgefuse.runtime.errors import EngineError
from tests.check_models import pair

FAKE = """
import os, signal
__version__ = "9.9"
class Logger:
    INTERNAL_ERROR = 0
    def __init__(self, severity): pass
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return None
class Error:
    def desc(self): return "says\\n  no"
    def node_name(self): return "n"
    def node_operator(self): return "Op"
class OnnxParser:
    def __init__(self, network, logger): self.num_errors = 0
    def get_error(self, index): return Error()
    def parse(self, model, path=None):
        print("noise on stdout", flush=True)
        if model == b"crash": os.kill(os.getpid(), signal.SIGSEGV)
        if model == b"leave": os._exit(3)
        self.num_errors = int(model == b"bad")
        return model != b"bad"
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    module = tmp_path / "tensorrt_rtx.py"
    module.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return module


def test_a_crash_is_the_answer_of_one_model_and_the_others_are_asked(fake: Path) -> None:
    version, answers = ask([b"good", b"crash", b"bad", b"leave", b"good"])
    assert version == "9.9"
    assert answers == [
        Answer(True, ""),
        Answer(None, "the parser was killed by SIGSEGV"),
        Answer(False, "Op 'n': says no"),
        Answer(None, "the parser ended with exit code 3"),
        Answer(True, ""),
    ]


def test_a_parser_that_dies_before_it_reads_is_no_models_fault(fake: Path) -> None:
    fake.write_text("import os; os._exit(7)")
    with pytest.raises(EngineError, match="ended with exit code 7 before it read a model"):
        ask([b"good"])


def test_nothing_to_ask_tells_the_version(fake: Path) -> None:
    assert ask([]) == ("9.9", [])


def test_the_real_parser_is_asked() -> None:
    pytest.importorskip("tensorrt_rtx")
    version, (answer,) = ask([pair()])
    assert version.count(".") == 3
    assert answer == Answer(True, "")
