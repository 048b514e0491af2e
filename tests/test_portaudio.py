"""A microphone over a stand-in for sounddevice, whose signatures are those of the installed package."""

from __future__ import annotations

import ast
import builtins
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgefuse.runtime import portaudio as module
from edgefuse.runtime.errors import MissingExtraError, SensorError
from edgefuse.runtime.portaudio import Device


class PortAudioError(Exception):
    """As sounddevice's."""


class FakeSounddevice:
    """Two microphones, which can be pulled out and come back; new ones are seen after `_initialize` only."""

    PortAudioError = PortAudioError

    def __init__(self) -> None:
        self.plugged = self._listed = ["USB mic", "Array"]
        self.streams: list[FakeStream] = []
        self.refuses = False

    def _terminate(self) -> None:
        self._listed = []

    def _initialize(self) -> None:
        self._listed = list(self.plugged)

    def query_devices(self, device: Any = None, kind: Any = None) -> dict[str, Any]:
        if not self._listed:
            raise PortAudioError("Error querying device -1")
        if isinstance(device, str) and not any(device in name for name in self._listed):
            raise ValueError(f"No input device matching {device!r}:\n[0] other")
        channels = 8 if device == "Array" else 1
        return {"name": device, "default_samplerate": 48_000.0, "max_input_channels": channels}

    def InputStream(  # noqa: N802
        self,
        samplerate=None,
        blocksize=None,
        device=None,
        channels=None,
        dtype=None,
        latency=None,
        extra_settings=None,
        callback=None,
        finished_callback=None,
        clip_off=None,
        dither_off=None,
        never_drop_input=None,
        prime_output_buffers_using_stream_callback=None,
    ) -> FakeStream:
        self.streams.append(FakeStream(self, samplerate, blocksize, device, channels, dtype, callback))
        return self.streams[-1]


class FakeStream:
    """What InputStream gives; `play` is PortAudio's thread."""

    def __init__(self, library, samplerate, blocksize, device, channels, dtype, callback) -> None:
        self.settings = {"samplerate": samplerate, "blocksize": blocksize, "device": device, "channels": channels}
        assert dtype == "float32"
        self._library, self._callback = library, callback
        self.active = self.is_closed = False

    def start(self) -> None:
        if self._library.refuses:
            raise PortAudioError("Error starting stream: Device unavailable [PaErrorCode -9985]")
        self.active = True

    def abort(self, ignore_errors: bool = True) -> None:
        self.active = False

    def close(self, ignore_errors: bool = True) -> None:
        self.is_closed = True

    def play(self, samples: Any, age_s: float = 0.0) -> None:
        """Hand over samples [n, channels], the first of which is `age_s` old."""
        samples = np.array(samples, np.float32)
        times = SimpleNamespace(inputBufferAdcTime=100.0 - age_s, currentTime=100.0, outputBufferDacTime=0.0)
        self._callback(samples, len(samples), times, None)
        samples[:] = np.nan  # PortAudio's memory is its own again


@pytest.fixture
def library(monkeypatch) -> FakeSounddevice:
    library = FakeSounddevice()
    monkeypatch.setitem(sys.modules, "sounddevice", library)  # type: ignore[arg-type]
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.02)
    return library


def test_the_stand_in_has_the_signatures_of_the_real_one():
    real = ast.parse(Path(find_spec("sounddevice").origin).read_text(encoding="utf-8"))
    fake = ast.parse(Path(__file__).read_text(encoding="utf-8"))

    def arguments(tree: ast.Module, scope: str, name: str) -> list[str]:
        nodes = (
            next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == scope).body if scope else tree.body
        )
        function = next(n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == name)
        return [argument.arg for argument in function.args.args if argument.arg != "self"]

    for real_scope, name, fake_scope, fake_name in (
        ("InputStream", "__init__", "FakeSounddevice", "InputStream"),
        ("", "query_devices", "FakeSounddevice", "query_devices"),
        ("", "_initialize", "FakeSounddevice", "_initialize"),
        ("", "_terminate", "FakeSounddevice", "_terminate"),
        ("_StreamBase", "start", "FakeStream", "start"),
        ("_StreamBase", "abort", "FakeStream", "abort"),
        ("_StreamBase", "close", "FakeStream", "close"),
    ):
        assert arguments(real, real_scope, name) == arguments(fake, fake_scope, fake_name), name
    assert arguments(real, "_StreamBase", "active") == []
    assert any(isinstance(node, ast.ClassDef) and node.name == "PortAudioError" for node in real.body)


@pytest.mark.parametrize(
    ("where", "device", "channels"),
    [("default", None, 1), ("1", 1, 1), ("Array", "Array", 2), ("USB mic", "USB mic", 1)],
)
def test_a_microphone_is_opened_at_its_own_rate_with_two_channels_at_most(library, where, device, channels):
    microphone = Device(where)

    assert microphone.open() == 48_000

    assert library.streams[0].settings == {
        "samplerate": 48_000,
        "blocksize": 2400,
        "device": device,
        "channels": channels,
    }
    assert microphone.name == f"microphone {where}"
    microphone.close()
    microphone.close()
    assert library.streams[0].is_closed


def test_channels_are_mixed_and_blocks_come_in_order(library):
    microphone = Device("Array")
    microphone.open()
    library.streams[0].play([[0.5, 0.0], [0.25, 0.75]])
    library.streams[0].play([[1.0, 1.0]])

    np.testing.assert_array_equal(microphone.read().pcm, [0.25, 0.5])
    np.testing.assert_array_equal(microphone.read().pcm, [1.0])
    assert microphone.read() is None


@pytest.mark.parametrize(("age_s", "late_s"), [(0.3, 0.2), (0.1, 0.0), (100.0, 0.0), (-5.0, 0.0)])
def test_a_block_is_stamped_when_its_last_sample_was_captured(library, age_s, late_s, monkeypatch):
    monkeypatch.setattr(time, "monotonic_ns", lambda: 7_000_000_000)
    microphone = Device("default")
    microphone.open()

    library.streams[0].play(np.zeros((4800, 1)), age_s)  # 0.1 s

    assert microphone.read().t_ns == pytest.approx(7e9 - late_s * 1e9, abs=1000)


def test_a_microphone_that_gives_nothing_is_gone(library):
    microphone = Device("default")
    microphone.open()
    assert microphone.read() is None
    library.streams[0].play([[0.5]])
    assert microphone.read() is not None
    assert [microphone.read(), microphone.read()] == [None, None]

    with pytest.raises(SensorError, match="gives no sound"):
        microphone.read()


def test_a_stream_that_has_stopped_is_noticed_at_once(library):
    microphone = Device("default")
    microphone.open()
    library.streams[0].active = False

    with pytest.raises(SensorError, match="gives no sound"):
        microphone.read()


def test_a_microphone_that_was_pulled_out_is_found_when_it_is_back(library):
    library.plugged = ["other"]
    library._initialize()
    microphone = Device("USB mic")
    with pytest.raises(SensorError, match=r"No input device matching 'USB mic': \[0\] other; `python -m sounddevice`"):
        microphone.open()
    microphone.close()

    library.plugged = ["USB mic"]

    assert microphone.open() == 48_000


def test_a_microphone_in_use_is_an_error_and_leaves_no_stream(library):
    library.refuses = True

    with pytest.raises(SensorError, match="Device unavailable"):
        Device("default").open()

    assert library.streams[0].is_closed


def test_blocks_that_nobody_reads_do_not_fill_the_memory(library):
    microphone = Device("default")
    microphone.open()
    for number in range(module.MOST_BLOCKS + 5):
        library.streams[0].play([[number]])

    assert microphone.read().pcm[0] == 5


def test_each_opening_has_its_own_blocks(library):
    microphone = Device("default")
    microphone.open()
    microphone.open()  # the thread of the first one is stuck
    library.streams[0].play([[0.1]])
    library.streams[1].play([[0.2]])

    assert microphone.read().pcm[0] == np.float32(0.2)
    assert microphone.read() is None


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (ImportError("No module named 'sounddevice'"), MissingExtraError, r"pip install 'edgefuse\[mic\]'"),
        (OSError("PortAudio library not found"), SensorError, r"PortAudio library not found\): apt-get install"),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch, raised, expected, message):
    real_import = builtins.__import__

    def importing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "sounddevice":
            raise raised
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", importing)

    with pytest.raises(expected, match=message):
        Device("default")
