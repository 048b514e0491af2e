"""Decoding pictures and sounds: the same content as an independent decoder finds, or one clear refusal."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from edgefuse.runtime.errors import MediaError
from edgefuse.runtime.media import decode_audio, decode_image, read_media

RATE = 16_000
ORIENTATION = 0x0112  # EXIF tag


def picture(mode: str = "RGB") -> Image.Image:
    """Four coloured quarters over a gradient, 24 wide and 16 high, so that every rotation shows."""
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :12], pixels[:8, 12:], pixels[8:, :12], pixels[8:, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), 255
    pixels //= np.arange(1, 17, dtype=np.uint8)[:, None, None] // 4 + 1
    return Image.fromarray(pixels).convert(mode)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def noise(kind: str) -> bytes:
    """A picture whose bytes do not compress, so that a cut always loses pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return encode(Image.fromarray(pixels), kind)


@pytest.mark.parametrize(
    ("kind", "mode", "tolerance"),
    [
        *[(kind, "RGB", 0) for kind in ("PNG", "BMP", "TIFF")],
        ("JPEG", "RGB", 2),
        *[("PNG", mode, 0) for mode in ("L", "P", "1")],
        ("JPEG", "L", 2),
        ("WEBP", "RGB", 6),
    ],
)
def test_pixels_are_those_of_pillow(kind, mode, tolerance):
    data = encode(picture(mode), kind)

    pixels = decode_image(data, "p")

    assert (pixels.dtype, pixels.flags.c_contiguous) == (np.uint8, True)
    assert np.abs(pixels - rgb(Image.open(io.BytesIO(data)))).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(picture(), kind, exif=exif)

    upright = rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))

    assert np.abs(decode_image(data, "p") - upright).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_over_black(kind):
    image = picture("RGBA")
    image.putalpha(Image.fromarray(np.arange(16 * 24, dtype=np.uint8).reshape(16, 24)))
    data = encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))

    over_black = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)

    assert np.abs(decode_image(data, "p") - rgb(over_black)).max() <= 1


def test_grey_with_alpha_and_palette_with_a_transparent_colour_are_laid_over_black():
    grey = Image.merge("LA", (picture("L"), picture("L").point(lambda value: 255 * (value > 60))))
    opaque = np.asarray(grey)[:, :, 1:] > 0
    palette = picture().quantize(8)
    kept = np.asarray(palette)[:, :, None] != 0

    assert np.abs(decode_image(encode(grey, "PNG"), "p") - np.where(opaque, rgb(grey), 0)).max() <= 1
    transparent = decode_image(encode(palette, "PNG", transparency=0), "p")
    np.testing.assert_array_equal(transparent, np.where(kept, rgb(palette), 0))


def test_sixteen_bits_become_eight():
    deep = (np.arange(16 * 24, dtype=np.uint16) * 170).reshape(16, 24)

    pixels = decode_image(encode(Image.fromarray(deep), "PNG"), "p")

    assert pixels.shape == (16, 24, 3)
    assert np.abs(pixels[:, :, 0] - deep / 257).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_off_picture_is_refused(kind, share, capfd):
    data = noise(kind)

    with pytest.raises(MediaError, match=r"^p\.x: ") as refusal:
        decode_image(data[: int(len(data) * share)], "p.x")

    assert "\n" not in str(refusal.value)
    assert capfd.readouterr().err == ""


@given(st.data())
def test_no_prefix_of_a_png_or_jpeg_decodes(data):
    whole = noise(data.draw(st.sampled_from(["PNG", "JPEG"])))

    with pytest.raises(MediaError):
        decode_image(whole[: data.draw(st.integers(0, len(whole) - 1))], "p")


@given(st.integers(0, len(noise("PNG")) - 1), st.integers(1, 255))
def test_any_changed_byte_of_a_png_is_refused(at, change):
    damaged = bytearray(noise("PNG"))
    damaged[at] ^= change

    with pytest.raises(MediaError):
        decode_image(bytes(damaged), "p")


def test_what_a_phone_appends_to_a_jpeg_does_no_harm():
    whole = noise("JPEG")

    np.testing.assert_array_equal(decode_image(whole + bytes(5000), "p"), decode_image(whole, "p"))


def test_the_end_of_an_embedded_preview_does_not_hide_a_cut():
    whole = encode(picture(), "JPEG")
    preview = b"\xff\xe1" + (len(whole) + 2).to_bytes(2, "big") + whole  # an APP1 segment that holds a whole JPEG
    with_preview = whole[:2] + preview + whole[2:]

    np.testing.assert_array_equal(decode_image(with_preview, "p"), decode_image(whole, "p"))
    with pytest.raises(MediaError, match="cut off"):
        decode_image(with_preview[:-20], "p")


_MAGIC = st.sampled_from(
    [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"II*\0", b"MM\0*", b"BM", b"GIF89a", b"fLaC", b"OggS"]
)


@settings(max_examples=200)
@given(_MAGIC, st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_are_refused(magic, rest):
    for decode in (decode_image, decode_audio):
        message = "x: fine"
        try:
            decode(magic + rest, "x")
        except MediaError as refusal:
            message = str(refusal)
        assert message.startswith("x: ")


def sound(kind: str = "WAV", *, rate: int = RATE, subtype: str | None = None, channels: int = 1) -> bytes:
    """A second of a 440 Hz tone; further channels are silent."""
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    buffer = io.BytesIO()
    samples = np.stack([tone, *[np.zeros(rate)] * (channels - 1)], axis=1)
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("FLAC", "PCM_24", 1e-6),
        ("AIFF", None, 1e-4),
        ("OGG", None, 0.02),
    ],
)
def test_samples_are_what_was_written(kind, subtype, tolerance):
    pcm, rate = decode_audio(sound(kind, subtype=subtype), "s")

    assert (pcm.dtype, pcm.shape, rate) == (np.float32, (RATE,), RATE)
    assert np.abs(pcm - 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).max() < tolerance


@settings(max_examples=400, deadline=None)
@given(
    channels=st.integers(1, 3),
    subtype=st.sampled_from(["PCM_16", "PCM_16", "PCM_24", "FLOAT", "ALAW"]),
    changes=st.dictionaries(st.integers(0, 47), st.integers(0, 255), max_size=2),
)
def test_a_wav_with_any_header_holds_what_soundfile_reads_or_is_refused(channels, subtype, changes):
    buffer = io.BytesIO()
    noise = np.random.default_rng(channels).uniform(-1, 1, (64, channels))
    soundfile.write(buffer, noise, RATE, format="WAV", subtype=subtype)
    data = bytearray(buffer.getvalue())
    for at, byte in changes.items():
        data[at] = byte
    try:
        pcm, rate = decode_audio(bytes(data), "s")
    except MediaError:
        return
    expected, expected_rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert rate == expected_rate
    np.testing.assert_array_equal(pcm, expected.mean(axis=1).clip(-1, 1))


def test_an_mp3_decodes():
    pcm, rate = decode_audio(sound("MP3"), "s")

    assert rate == RATE
    assert abs(len(pcm) - RATE) <= 1152  # one frame
    assert np.sqrt(np.mean(pcm**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.02)


def test_stereo_becomes_the_mean_of_its_channels():
    pcm, _ = decode_audio(sound(channels=2), "s")

    assert np.abs(pcm).max() == pytest.approx(0.25, abs=1e-3)


def test_samples_beyond_full_scale_are_clipped():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, 3.0, -3.0]), RATE, format="WAV", subtype="FLOAT")

    np.testing.assert_array_equal(decode_audio(buffer.getvalue(), "s")[0], [0, 1, -1])


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_off_sound_is_refused(kind, share):
    data = sound(kind)

    with pytest.raises(MediaError, match=r"^s\.x: the sound|^s\.x: not a sound"):
        decode_audio(data[: int(len(data) * share)], "s.x")


def test_a_wav_written_to_a_pipe_is_taken():
    data = bytearray(sound())
    data[4:8] = data[40:44] = b"\xff\xff\xff\xff"  # its writer did not know the length

    assert len(decode_audio(bytes(data), "s")[0]) == RATE


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sound_that_is_not_finite_is_refused(value):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.1, value, 0.2]), RATE, format="WAV", subtype="FLOAT")

    with pytest.raises(MediaError, match="NaN or infinite"):
        decode_audio(buffer.getvalue(), "s")


def test_a_sound_without_samples_is_refused():
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(0), RATE, format="WAV")

    with pytest.raises(MediaError, match="no samples"):
        decode_audio(buffer.getvalue(), "s")


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "GSM610"), ("WAV", "NMS_ADPCM_16"), ("AU", "G721_32")])
def test_a_codec_of_telephones_that_cannot_be_wound_decodes(kind, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * np.sin(np.arange(8000) / 10), 8000, format=kind, subtype=subtype)

    pcm, rate = decode_audio(buffer.getvalue(), "s")

    assert rate == 8000
    assert np.sqrt(np.mean(pcm[1000:7000] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_a_flac_that_announces_more_than_any_memory_holds_is_refused():
    data = bytearray(sound("FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4  # the number of samples, 36 bits

    with pytest.raises(MediaError, match="not a sound that can be decoded"):
        decode_audio(bytes(data), "s")


@pytest.mark.parametrize("channels", [1, 2, 1024])
def test_a_wav_of_sixteen_bits_needs_no_call_back_from_c(channels, monkeypatch):
    data = sound(channels=channels)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    monkeypatch.delattr(soundfile, "SoundFile")

    np.testing.assert_array_equal(decode_audio(data, "s")[0], expected.mean(axis=1))


def test_text_in_a_picture_file_and_a_picture_in_a_sound_file_are_refused():
    with pytest.raises(MediaError, match="not a picture that OpenCV can decode; use JPEG"):
        decode_image(b"I am text", "p.png")
    with pytest.raises(MediaError, match="not a sound that can be decoded"):
        decode_audio(noise("PNG"), "s.wav")


def test_a_file_that_is_missing_empty_or_a_folder_is_refused(tmp_path):
    (tmp_path / "empty").touch()

    for name, message in {"missing": "No such file", "empty": "the file is empty", ".": "Is a directory"}.items():
        with pytest.raises(MediaError, match=message):
            read_media(tmp_path / name)
