"""The gate: spoken sentences are found with their beginnings, once each, and noise is not; by energy and by Silero."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgefuse.runtime import gate as module
from edgefuse.runtime.bundle import AudioSpec
from edgefuse.runtime.errors import SensorError
from edgefuse.runtime.gate import Gate, SileroDetector, open_gate
from edgefuse.runtime.media import Pcm
from edgefuse.runtime.preprocess import to_rate
from edgefuse.runtime.ring import Ring
from edgefuse.train.speech import Espeak, Voice

RATE = 16_000
AUDIO = AudioSpec(sample_rate=RATE, samples=2 * RATE)
KINDS = ("energy", "silero")
ROOM_DB = (-70, -50, -40)  # noise of a room, below full scale


@pytest.fixture(scope="module")
def sentences() -> list[Pcm]:
    """Two spoken sentences, of 1.7 and 0.9 seconds."""
    espeak = Espeak()
    spoken = [
        espeak.speak(text, Voice("en-us+f3")) for text in ("is there a red circle in the picture", "what colour is it")
    ]
    return [to_rate(pcm.astype(np.float32) / 32768, rate, RATE) for pcm, rate in spoken]


def noise(seconds: float, level_db: float) -> Pcm:
    """White noise."""
    return np.random.default_rng(0).normal(0, 10 ** (level_db / 20), round(seconds * RATE)).astype(np.float32)


def utterances(gate: Gate, sound: Pcm, piece: int = 800) -> list[tuple[float, float]]:
    """Where the gate found somebody speaking, in seconds, when the sound comes in pieces."""
    ring, found = Ring(AUDIO.samples + 2 * RATE), []
    for at in range(0, len(sound), piece):
        ring.write(sound[at : at + piece])
        while (utterance := gate.advance(ring)) is not None:
            found.append(utterance)
    if (utterance := gate.finish(ring)) is not None:
        found.append(utterance)
    return [(start / RATE, end / RATE) for start, end in found]


@pytest.mark.parametrize("room_db", ROOM_DB)
@pytest.mark.parametrize("kind", KINDS)
def test_each_sentence_is_found_once_from_just_before_its_beginning(kind, room_db, sentences):
    first, second = sentences
    quiet = [np.zeros(round(seconds * RATE), np.float32) for seconds in (2, 1.5, 2)]
    sound = np.concatenate([quiet[0], first, quiet[1], second, quiet[2]])
    begins = np.array([2, 3.5 + len(first) / RATE])
    ends = begins + np.array([1.75, len(second) / RATE + 0.4])  # the first one is cut after the model's two seconds

    found = np.array(utterances(open_gate(kind, AUDIO), sound + noise(len(sound) / RATE, room_db)))

    assert found.shape == (2, 2)
    assert ((found[:, 0] > begins - 0.4) & (found[:, 0] < begins)).all()
    np.testing.assert_allclose(found[:, 1], ends, atol=0.3)
    assert (found[:, 1] - found[:, 0] <= 2).all()


@pytest.mark.parametrize("room_db", ROOM_DB)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_says_nothing(kind, room_db):
    assert utterances(open_gate(kind, AUDIO), noise(10, room_db)) == []


def test_silero_is_not_misled_by_what_is_only_loud():
    loud = np.concatenate([noise(2, -60), noise(3, -25), noise(2, -60)])

    assert utterances(open_gate("silero", AUDIO), loud) == []
    assert len(utterances(open_gate("energy", AUDIO), loud)) == 1


def test_a_fan_that_starts_is_noise_after_some_seconds_and_speech_is_heard_over_it(sentences):
    sound = np.concatenate([noise(2, -60), noise(20, -40)])
    sound[15 * RATE : 15 * RATE + len(sentences[0])] += sentences[0]

    found = utterances(open_gate("energy", AUDIO), sound)

    assert found[0][0] < 2.5
    assert 14.5 < found[-1][0] < 15
    assert len(found) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_that_is_one_sentence_is_taken_from_its_first_to_its_last_sample(kind, sentences):
    [(start, end)] = utterances(open_gate(kind, AUDIO), sentences[1])

    assert (start, end) == (0, len(sentences[1]) / RATE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gate_that_was_reset_hears_as_a_new_one(kind, sentences):
    gate = open_gate(kind, AUDIO)
    sound = np.concatenate([noise(1, -50), sentences[1], noise(1, -50)])
    first = utterances(gate, sound)
    utterances(gate, noise(1, -20))

    gate.reset()

    assert utterances(gate, sound) == first


@given(piece=st.integers(1, 5000))
def test_utterances_do_not_depend_on_the_pieces_that_the_sound_comes_in(piece):
    tone = np.sin(np.arange(RATE, dtype=np.float32)) / 4
    sound = np.concatenate([noise(0.6, -60), tone, noise(0.8, -60), tone[: RATE // 2], noise(0.7, -60)])

    assert utterances(open_gate("energy", AUDIO), sound, piece) == utterances(open_gate("energy", AUDIO), sound)


class Scripted:
    """Speech where a string has an S."""

    frame = 1600

    def __init__(self, script: str) -> None:
        self._frames = iter(script)

    def hears(self, pcm: Pcm) -> bool:
        return next(self._frames) == "S"

    def reset(self) -> None:
        pass


def scripted(script: str) -> list[tuple[float, float]]:
    """Utterances of a script, one letter for each 0.1 s."""
    return utterances(Gate(Scripted(script), AUDIO), np.zeros(1600 * len(script), np.float32))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("......SSSS.........", [(0.35, 1.5)]),  # 0.25 s ahead, 0.5 s of silence behind
        ("......SS...SS......", []),  # clicks
        ("......SSS....SSS.........", [(0.35, 2.1)]),  # a gap between words
        (".SSS......SSS.........", [(0.0, 0.9), (0.9, 1.8)]),  # never before the beginning, never twice
        ("....." + "S" * 50 + ".....", [(0.25, 2.25)]),  # longer than the model takes: cut, and told once
        ("....." + "S" * 25 + "......SSS......", [(0.25, 2.25), (3.5, 4.4)]),
        ("......SSS", [(0.35, 0.9)]),  # the sound ends
        ("......SS", []),
    ],
)
def test_where_an_utterance_begins_and_ends(script, expected):
    assert scripted(script) == [pytest.approx(utterance) for utterance in expected]


def test_no_gate_is_no_gate():
    assert open_gate("off", AUDIO) is None


def test_an_unknown_gate_names_those_that_there_are():
    with pytest.raises(SensorError, match=r"gate 'loud' is unknown; use off, energy, silero or silero=model.onnx"):
        open_gate("loud", AUDIO)


def test_silero_refuses_another_sample_rate():
    with pytest.raises(SensorError, match="16000 Hz and this model 8000 Hz; use the energy gate"):
        open_gate("silero", AudioSpec(sample_rate=8000, samples=8000))


def test_silero_without_a_model_says_where_to_get_one(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)

    with pytest.raises(SensorError, match="pip install --no-deps silero-vad"):
        open_gate("silero", AUDIO)


def test_a_model_can_be_given_by_its_path(tmp_path, sentences):
    copy = tmp_path / "model.onnx"
    copy.write_bytes(module._installed_silero().read_bytes())

    assert len(utterances(open_gate(f"silero={copy}", AUDIO), sentences[1])) == 1


def other_model() -> bytes:
    """As Silero 4, whose state came in two parts."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("input", "h", "c")]
    node = helper.make_node("Sum", ["input", "h", "c"], ["output"])
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1])]
    graph = helper.make_graph([node], "other", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"model.onnx: no Silero model \(No such file or directory\)"),
        (b"no model", "model.onnx: no Silero model"),
        (other_model(), "model.onnx: takes c, h, input; use Silero VAD of version 5 or later"),
    ],
)
def test_what_is_no_silero_model_is_refused(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SensorError, match=message):
        SileroDetector(path)


@pytest.mark.filterwarnings("ignore:This model support only 16000")
@pytest.mark.parametrize("file", module.SILERO_FILES)
def test_silero_gives_the_probabilities_that_its_own_package_does(file, sentences):
    """The oracle is the package's own OnnxWrapper on the same frames."""
    torch = pytest.importorskip("torch")
    wrapper = pytest.importorskip("silero_vad.utils_vad").OnnxWrapper
    path = module._installed_silero().with_name(file)
    frames = sentences[0][: len(sentences[0]) // 512 * 512].reshape(-1, 512)
    theirs = wrapper(str(path), force_onnx_cpu=True)
    ours = SileroDetector(path)

    expected = [theirs(torch.from_numpy(frame[None]), RATE).item() for frame in frames]

    np.testing.assert_allclose([ours.probability(frame) for frame in frames], expected, atol=1e-6)
    assert max(expected) > 0.9


def test_finding_silero_does_not_import_torch():
    script = (
        "import sys; from edgefuse.runtime.bundle import AudioSpec; from edgefuse.runtime.gate import open_gate;"
        "open_gate('silero', AudioSpec(sample_rate=16000, samples=16000));"
        "assert not {'torch', 'silero_vad'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", script], check=True)
