"""The encoders: sensor tensors to tokens, whatever the table row; pretrained weights from disk; every wrong name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import DistilBertConfig, DistilBertModel

from edgefuse.runtime.errors import RecipeError
from edgefuse.train import encoders
from edgefuse.train.encoders import (
    AUDIO_ENCODERS,
    IMAGE_ENCODERS,
    TEXT_ENCODERS,
    AttentionPool,
    AudioEncoder,
    ConvStem,
    ImageEncoder,
    SpatialMean,
    TextEncoder,
)
from edgefuse.train.frontends import HOP, SAMPLE_RATE, WINDOW
from edgefuse.train.image_nets import CellLayers
from edgefuse.train.recipe import AudioSettings, ImageSettings, TextSettings
from tests.train_fixtures import tiny_tokenizer

SAMPLES = SAMPLE_RATE // 2


def pictures(count: int = 2, height: int = 64, width: int = 96) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def sounds(count: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(count, SAMPLES, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def distilbert_folder(tmp_path: Path) -> Path:
    """A pretrained DistilBERT on disk as transformers saves it."""
    torch.manual_seed(3)
    config = DistilBertConfig(vocab_size=50, dim=24, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=12)
    DistilBertModel(config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize("name", IMAGE_ENCODERS)
@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_pictures_become_one_token_or_one_per_cell(name: str, tokens: str) -> None:
    encoder = ImageEncoder(ImageSettings(encoder=name, height=64, width=96, tokens=tokens)).eval()
    with torch.no_grad():
        found = encoder(pictures())
    row = IMAGE_ENCODERS[name]
    assert encoder.count == (1 if tokens == "pooled" else 64 * 96 // row.stride**2)
    dim = row.dim if tokens == "pooled" else CellLayers.DIM
    assert found.shape == (2, encoder.count, encoder.dim) == (2, encoder.count, dim)


def test_a_cell_knows_where_it_is() -> None:
    encoder = ImageEncoder(ImageSettings(encoder="conv4", height=96, width=96, tokens="all")).eval()
    with torch.no_grad():
        cells = encoder(torch.zeros(1, 96, 96, 3, dtype=torch.uint8))[0].reshape(6, 6, -1)
    inner = cells[2:5, 2:5].flatten(0, 1)  # no convolution sees the border from there
    apart = torch.cdist(inner, inner) + torch.eye(9)
    assert apart.min() > 0.1


def test_the_pooled_picture_is_the_mean_of_its_cells_as_torchvisions_classifier_sees_it() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageSettings(height=64, width=96)).eval()
    with torch.no_grad():
        planes = encoder.frontend(pictures())
        expected = torch.nn.functional.adaptive_avg_pool2d(encoder.features(planes), 1).flatten(1)
        torch.testing.assert_close(encoder(pictures())[:, 0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (4, 9)])
def test_the_spatial_mean_is_torchs_adaptive_pooling(size: tuple[int, int]) -> None:
    planes = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.adaptive_avg_pool2d(planes, 1)
    torch.testing.assert_close(SpatialMean()(planes), expected, atol=1e-6, rtol=1e-6)


def test_a_mobilenet_computes_what_torchvisions_does() -> None:
    """Squeeze-excite pools in another way here: the feature maps are the same."""
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageSettings(height=64, width=96))
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the statistics of one batch: those it starts with let the picture fade
    theirs = IMAGE_ENCODERS["mobilenet_v3_small"].build(weights=None).features.eval()
    with torch.no_grad():
        encoder(pictures())
        theirs.load_state_dict(encoder.eval().features.state_dict())
        planes = encoder.frontend(pictures())
        expected = theirs(planes)
        assert expected.std() > 0.1
        torch.testing.assert_close(encoder.features(planes), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("height", [65, 97])
def test_a_height_between_the_strides_counts_its_cells_right(height: int) -> None:
    encoder = ImageEncoder(ImageSettings(height=height, width=33, tokens="all")).eval()
    with torch.no_grad():
        assert encoder(pictures(1, height, 33)).shape[1] == encoder.count


@pytest.mark.parametrize("name", ["conformer_nano", "conformer_small", "cnn_lstm_small"])
@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_sounds_become_one_token_or_one_per_40_ms(name: str, tokens: str) -> None:
    encoder = AudioEncoder(AudioSettings(encoder=name, seconds=0.5, tokens=tokens), SAMPLES).eval()
    frames = 1 + (SAMPLES - WINDOW) // HOP
    with torch.no_grad():
        found = encoder(sounds())
    assert encoder.count == (1 if tokens == "pooled" else -(-frames // 4))
    assert found.shape == (2, encoder.count, encoder.dim) == (2, encoder.count, AUDIO_ENCODERS[name]["dim"])


@pytest.mark.parametrize("name", ["conformer_nano", "cnn_lstm_small"])
@pytest.mark.parametrize("features", ["log_mel", "mfcc"])
def test_a_sound_is_encoded_alike_alone_and_in_a_batch(name: str, features: str) -> None:
    encoder = AudioEncoder(AudioSettings(encoder=name, features=features), SAMPLES).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(sounds(3))[1:2], encoder(sounds(3)[1:2]), atol=1e-5, rtol=1e-4)


def test_the_stem_keeps_every_fourth_frame() -> None:
    stem = ConvStem(80, 8).eval()
    planes = torch.zeros(1, 80, 41)
    silent = stem(planes)
    assert silent.shape == (1, 8, 11)
    planes[0, :, 20] = 1.0  # the middle of output frame 5
    heard = (stem(planes) - silent).abs().amax(dim=1)[0] > 1e-7
    assert heard.nonzero().flatten().tolist() == [4, 5, 6]


def test_the_attention_pool_is_a_weighted_mean_per_channel() -> None:
    torch.manual_seed(0)
    pool, frames = AttentionPool(6), torch.randn(3, 10, 6)
    pooled = pool(frames)
    assert pooled.shape == (3, 1, 6)
    assert (frames.amin(dim=1) < pooled[:, 0]).all()
    assert (pooled[:, 0] < frames.amax(dim=1)).all()
    torch.nn.init.zeros_(pool.score.weight)
    torch.testing.assert_close(pool(frames), frames.mean(dim=1, keepdim=True))


def test_the_lstm_hears_forward_and_backward() -> None:
    encoder = AudioEncoder(AudioSettings(encoder="cnn_lstm_small", tokens="all"), SAMPLES).eval()
    frames = torch.zeros(1, 9, encoder.dim)
    changed = frames.clone()
    changed[:, 4] = 1.0
    with torch.no_grad():
        heard = (encoder.layers[0](changed) - encoder.layers[0](frames)).abs().amax(dim=2)[0]  # [9]
    assert (heard > 1e-6).all()


def test_the_cepstrum_is_taken_behind_the_augmentation() -> None:
    encoder = AudioEncoder(AudioSettings(encoder="conformer_nano", features="mfcc"), SAMPLES)
    shapes: list[tuple[int, ...]] = []
    for layer in (encoder.augment, encoder.stem):
        layer.register_forward_hook(lambda _, given, made: shapes.append(tuple(given[0].shape)))
    encoder(sounds())
    assert [shape[1:] for shape in shapes] == [(48, 80), (40, 48)]  # frames of bands, then coefficients over frames


def test_speech_is_augmented_in_training_only() -> None:
    encoder = AudioEncoder(AudioSettings(encoder="conformer_nano"), SAMPLES)
    calls: list[bool] = []
    encoder.augment.register_forward_hook(lambda _, given, made: calls.append(given[0] is made))
    encoder.train()(sounds())
    encoder.eval()(sounds())
    assert calls == [False, True]


@pytest.mark.parametrize("name", ["distilbert_nano", "distilbert_small"])
@pytest.mark.parametrize("tokens", ["pooled", "all"])
def test_texts_become_one_token_or_one_per_wordpiece(name: str, tokens: str) -> None:
    encoder = TextEncoder(TextSettings(encoder=name, max_tokens=8, tokens=tokens), vocabulary=50).eval()
    ids, mask = (torch.from_numpy(array) for array in tiny_tokenizer().encode(["is it red", "which color is it"]))
    with torch.no_grad():
        found = encoder(ids, mask)
    assert encoder.count == (1 if tokens == "pooled" else 8)
    assert found.shape == (2, encoder.count, encoder.dim) == (2, encoder.count, TEXT_ENCODERS[name]["dim"])
    if tokens == "all":
        assert torch.equal(found.any(dim=2), mask.bool())  # padding is zero


def test_padding_never_changes_a_text() -> None:
    encoder = TextEncoder(TextSettings(encoder="distilbert_nano", max_tokens=8), vocabulary=50).eval()
    ids = torch.tensor([[2, 7, 8, 3, 0, 0, 0, 0]], dtype=torch.int32)
    mask = (ids > 0).int()
    other = torch.where(mask.bool(), ids, 9)
    with torch.no_grad():
        short = encoder(ids[:, :4], mask[:, :4])
        torch.testing.assert_close(encoder(ids, mask), short, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder(other, mask), short, atol=1e-5, rtol=1e-4)


def test_the_masked_mean_is_that_of_transformers_own_mask() -> None:
    torch.manual_seed(0)
    encoder = TextEncoder(TextSettings(encoder="distilbert_nano", max_tokens=8), vocabulary=50).eval()
    ids, mask = (torch.from_numpy(array) for array in tiny_tokenizer().encode(["is it red", "which color is it"]))
    with torch.no_grad():
        hidden = encoder.bert(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state
        expected = torch.stack([row[there.bool()].mean(dim=0) for row, there in zip(hidden, mask, strict=True)])
        torch.testing.assert_close(encoder(ids, mask)[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_a_pretrained_distilbert_is_loaded_from_a_folder(distilbert_folder: Path) -> None:
    settings = TextSettings(encoder=str(distilbert_folder), max_tokens=12)
    encoder = TextEncoder(settings, vocabulary=50).eval()
    assert encoder.dim == 24
    saved = DistilBertModel.from_pretrained(distilbert_folder).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in encoder.bert.state_dict().items())


def test_a_pretrained_distilbert_must_fit_the_tokenizer_and_the_length(distilbert_folder: Path) -> None:
    name = str(distilbert_folder)
    with pytest.raises(RecipeError, match=r"vocabulary of text\.tokenizer: found 51, .* takes at most 50"):
        TextEncoder(TextSettings(encoder=name, max_tokens=12), vocabulary=51)
    with pytest.raises(RecipeError, match=r"text\.max_tokens: found 13, .* takes at most 12"):
        TextEncoder(TextSettings(encoder=name, max_tokens=13), vocabulary=50)


def test_a_folder_without_a_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no row of the table \(distilbert_nano.*could not be loaded") as caught:
        TextEncoder(TextSettings(encoder=str(tmp_path)), vocabulary=50)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_loaded(distilbert_folder: Path) -> None:
    weights = distilbert_folder / "model.safetensors"
    torch.save({"a": torch.zeros(1)}, distilbert_folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(RecipeError, match="could not be loaded"):
        TextEncoder(TextSettings(encoder=str(distilbert_folder), max_tokens=12), vocabulary=50)


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_weights_are_loaded_from_a_local_safetensors(tmp_path: Path, modality: str) -> None:
    path = str(tmp_path / "weights.safetensors")

    def build(weights: str | None) -> torch.nn.Module:
        if modality == "image":
            return ImageEncoder(ImageSettings(height=32, width=32, weights=weights))
        return AudioEncoder(AudioSettings(encoder="conformer_nano", weights=weights), SAMPLES)

    torch.manual_seed(1)
    state = build(None).state_dict()
    save_file(state, path)
    torch.manual_seed(2)
    loaded = build(path).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())

    save_file({name: value for name, value in state.items() if "weight" in name}, path)
    with pytest.raises(
        RecipeError, match=rf"{modality}\.weights '.*' does not fit this encoder: .*Missing key"
    ) as caught:
        build(path)
    assert len(str(caught.value)) < 500
    (tmp_path / "weights.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(RecipeError, match="does not fit this encoder"):
        build(path)
    with pytest.raises(RecipeError, match=r"does not exist; give a \.safetensors file of the same"):
        build(str(tmp_path / "gone.safetensors"))


def test_imagenet_weights_are_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []
    row = IMAGE_ENCODERS["mobilenet_v3_small"]

    def stand_in(weights: str | None) -> torch.nn.Module:
        asked.append(weights)
        return row.build(weights=None)

    monkeypatch.setitem(encoders.IMAGE_ENCODERS, "mobilenet_v3_small", row._replace(build=stand_in))
    ImageEncoder(ImageSettings(weights="imagenet"))
    ImageEncoder(ImageSettings())
    assert asked == ["IMAGENET1K_V1", None]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v2"])
def test_one_picture_of_one_cell_is_learned_from_and_leaves_the_statistics_alone(name: str) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(ImageSettings(encoder=name, height=32, width=32)).train()
    statistics = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder(pictures(1, 32, 32)).sum().backward()
    assert all(torch.equal(value, statistics[name]) for name, value in encoder.named_buffers())
    assert encoder.features[0][0].weight.grad is not None
    assert all(module.training for module in encoder.modules())
    encoder(pictures(2, 32, 32))
    assert not any(torch.equal(v, statistics[n]) for n, v in encoder.named_buffers() if n.endswith("running_var"))


def test_a_text_encoder_by_its_config_has_the_layers_of_the_pretrained_one(distilbert_folder: Path) -> None:
    settings = TextSettings(encoder=str(distilbert_folder), max_tokens=12)
    pretrained = TextEncoder(settings, vocabulary=50).eval()
    config = json.loads(json.dumps(pretrained.bert.config.to_dict()))  # as run.json keeps it
    (distilbert_folder / "config.json").unlink()
    bare = TextEncoder(settings, vocabulary=50, config=config).eval()
    bare.load_state_dict(pretrained.state_dict())
    ids = torch.tensor([[2, 7, 8, 3]], dtype=torch.int32)
    with torch.no_grad():
        assert torch.equal(bare(ids, ids.new_ones(1, 4)), pretrained(ids, ids.new_ones(1, 4)))


def test_an_unknown_encoder_names_the_table() -> None:
    with pytest.raises(RecipeError, match=r"image\.encoder 'resnet' is unknown; choose one of mobilenet_v3_small, "):
        ImageEncoder(ImageSettings(encoder="resnet"))
    with pytest.raises(RecipeError, match=r"audio\.encoder 'wav2vec' is unknown; choose one of conformer_nano, "):
        AudioEncoder(AudioSettings(encoder="wav2vec"), SAMPLES)
