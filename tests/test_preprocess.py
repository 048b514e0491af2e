"""Fitting pictures, sounds and texts to a model, against independent arithmetic."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edgefuse.runtime.bundle import AudioSpec, Bundle, ImageSpec
from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.preprocess import Preprocessor, fit_audio, fit_image, prepared, sensors_of, to_rate

RATE = 16_000


def chirp(rate: int, top_hz: float = 3400) -> np.ndarray:
    """A second from 100 Hz to `top_hz`, faded at both ends so that the resamplers' edges do not matter."""
    seconds = np.arange(rate) / rate
    window = scipy.signal.windows.tukey(rate, 0.2)
    return (0.8 * window * scipy.signal.chirp(seconds, 100, 1, top_hz)).astype(np.float32)


@pytest.mark.parametrize(("rate", "up", "down"), [(8000, 2, 1), (22050, 320, 441), (44100, 160, 441), (48000, 1, 3)])
def test_resampling_agrees_with_scipy(rate, up, down):
    pcm = chirp(rate)

    resampled = to_rate(pcm, rate, RATE)

    assert (resampled.dtype, len(resampled)) == (np.float32, RATE)
    np.testing.assert_allclose(resampled, scipy.signal.resample_poly(pcm, up, down), atol=0.01)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    seconds = np.arange(44100) / 44100
    too_high = np.sin(2 * np.pi * 11_000 * seconds).astype(np.float32)  # would come back as 5 kHz

    assert np.abs(to_rate(too_high, 44100, RATE)[1000:-1000]).max() < 1e-3


def test_the_right_rate_is_left_alone():
    pcm = chirp(RATE)

    np.testing.assert_array_equal(to_rate(pcm, RATE, RATE), pcm)


def test_a_resampled_sound_stays_within_full_scale():
    square = np.sign(np.sin(2 * np.pi * 300 * np.arange(8000) / 8000)).astype(np.float32)

    assert np.abs(to_rate(square, 8000, RATE)).max() == 1.0


@given(st.integers(0, 50), st.integers(1, 50))
def test_a_sound_is_cut_or_padded_at_its_end(length, samples):
    pcm = np.arange(1, length + 1, dtype=np.float32)

    fitted = fit_audio(pcm, samples)

    np.testing.assert_array_equal(fitted, [*pcm, *[0] * samples][:samples])


def test_shrinking_averages_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)

    blocks = pixels.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3))

    assert np.abs(fit_image(pixels, 3, 5) - blocks).max() <= 0.5


def test_enlarging_is_bilinear_between_pixel_centres():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    rows, columns = np.meshgrid((np.arange(10) + 0.5) / 2 - 0.5, (np.arange(21) + 0.5) / 3 - 0.5, indexing="ij")

    expected = [
        scipy.ndimage.map_coordinates(pixels[:, :, k].astype(float), [rows, columns], order=1, mode="nearest")
        for k in range(3)
    ]

    assert np.abs(fit_image(pixels, 10, 21) - np.stack(expected, axis=2)).max() <= 1


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_any_size_fits_any_size(height, width, new_height, new_width):
    fitted = fit_image(np.full((height, width, 3), 77, np.uint8), new_height, new_width)

    assert (fitted.dtype, fitted.shape) == (np.uint8, (new_height, new_width, 3))
    assert (fitted == 77).all()


def test_files_load_with_the_shape_and_type_of_the_engine_tensors(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((30, 50), 9, np.uint8))
    soundfile.write(tmp_path / "a.wav", np.stack([chirp(8000)] * 2, axis=1), 8000)

    specs = {"image": ImageSpec(height=16, width=24), "audio": AudioSpec(sample_rate=RATE, samples=20_000)}
    sensors = sensors_of(specs, None)
    image = prepared(sensors["image"], sensors["image"].decode(tmp_path / "a.png"))["image"][0]
    audio = prepared(sensors["audio"], sensors["audio"].decode(str(tmp_path / "a.wav")))["audio"][0]

    assert (image.dtype, image.shape) == (np.uint8, (16, 24, 3))
    assert (audio.dtype, audio.shape) == (np.float32, (20_000,))
    assert np.abs(audio[:RATE]).max() > 0.5
    assert not audio[RATE:].any()


def test_each_sensor_becomes_the_tensors_of_its_part(tiny):
    preprocessor = Preprocessor(Bundle.open(tiny.bundle))
    values = {"image": tiny.media / "red.png", "audio": tiny.media / "red.wav", "text": "red"}

    tensors = {m: preprocessor.prepare(m, preprocessor.decode(m, value)) for m, value in values.items()}

    found = {name: (array.dtype.name, array.shape) for part in tensors.values() for name, array in part.items()}
    assert found == {
        "image": ("uint8", (1, 8, 8, 3)),
        "audio": ("float32", (1, 160)),
        "input_ids": ("int32", (1, 4)),
        "attention_mask": ("int32", (1, 4)),
    }


def test_filling_gives_the_numbers_of_preparing_whatever_was_there_before(tiny):
    """Prepared by the functions that training uses, since `prepare` itself fills."""
    preprocessor = Preprocessor(Bundle.open(tiny.bundle))
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, size, np.uint8) for size in ((50, 31, 3), (8, 8, 3), (3, 5, 3), (16, 4, 3))]
    sounds = [(random.uniform(-1.2, 1.2, n).astype(np.float32), rate) for n, rate in ((90, RATE), (900, 48000))]
    expected: list[tuple[str, object, list[np.ndarray]]] = [
        *(("image", pixels, [fit_image(pixels, 8, 8)]) for pixels in pictures),
        *(("audio", sound, [fit_audio(to_rate(*sound, RATE), 160)]) for sound in sounds),
        ("text", "red blue", [np.array([4, 2, 0, 0]), np.array([1, 1, 0, 0])]),
    ]
    for modality, decoded, arrays in expected:
        tensors = preprocessor.empty(modality)
        addresses = [array.ctypes.data for array in tensors.values()]
        for array in tensors.values():
            array[:] = 99

        preprocessor.fill(modality, decoded, tensors)

        assert [array.ctypes.data for array in tensors.values()] == addresses
        for found, wanted in zip(tensors.values(), arrays, strict=True):
            np.testing.assert_array_equal(found, wanted[None])


def test_filling_a_picture_and_a_sound_makes_no_new_array(tiny):
    sizes = {"image": ImageSpec(height=120, width=160), "audio": AudioSpec(sample_rate=RATE, samples=RATE)}
    bundle = Bundle.open(tiny.bundle)
    preprocessor = Preprocessor(Bundle(bundle.folder, bundle.info.model_copy(update=sizes)))
    image, audio = np.zeros((8, 480, 640, 3), np.uint8), np.zeros((8, RATE), np.float32)
    tensors = {modality: preprocessor.empty(modality) for modality in ("image", "audio")}

    def fill_all():
        for pixels, pcm in zip(image, audio, strict=True):
            preprocessor.fill("image", pixels, tensors["image"])
            preprocessor.fill("audio", (pcm, RATE), tensors["audio"])

    fill_all()
    tracemalloc.start()
    fill_all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 4096  # views and numbers; a fitted picture has 58 kB, a sound 64 kB


def test_a_sensor_that_the_model_lacks_has_no_tensors(tiny_copy):
    info = tiny_copy.info.model_copy(update={"text": None})

    with pytest.raises(MediaError, match="this model has no text encoder; it takes: image, audio"):
        Preprocessor(Bundle(tiny_copy.folder, info)).empty("text")
