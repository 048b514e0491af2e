"""A small torch model with random weights, and the bundle that it is exported to: the oracle's side and ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from edgefuse.optimize.export import HeadPart, _to_onnx
from edgefuse.runtime.bundle import (
    HEAD,
    SENSOR_TENSORS,
    AudioSpec,
    Bundle,
    BundleInfo,
    ImageSpec,
    PartInfo,
    TextSpec,
    TokenSpec,
    part_file,
    token_tensor,
    write_bundle,
)
from edgefuse.train.model import Head
from edgefuse.train.recipe import FusionSettings
from tests.conftest import MODALITIES

LABELS = ("circle", "square", "triangle", "<b>star</b>")
HEIGHT, WIDTH, SAMPLES, RATE, TOKENS = 20, 40, 500, 1000, 10  # the last cells of both maps reach over the edge
PIECES = ("[PAD]", "[UNK]", "[MASK]", "[CLS]", "what", "is", "the", "tri", "##angle", "round", "one", "?")
DIM = 6


def sensed() -> dict[str, Any]:
    """A picture with a bright square, a sound with a loud part, and a question, as `Preprocessor.decode` gives them."""
    random = np.random.default_rng(0)
    pixels = random.integers(40, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pixels[8:16, 24:34] = (250, 200, 20)
    pcm = random.normal(0, 0.02, SAMPLES).astype(np.float32)
    pcm[100:220] += 0.5 * np.sin(np.arange(120) / 3).astype(np.float32)
    return {"image": pixels, "audio": (pcm, RATE), "text": "What is the triangle?"}


class PictureEncoder(nn.Module):
    """uint8 [B, H, W, 3] to 2 tokens [B, 2, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(3, 2 * DIM, 5, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.tanh(self.convolve(image.float().permute(0, 3, 1, 2) / 64))  # [B, 2 D, h, w]
        return features.square().mean(dim=(2, 3)).unflatten(1, (2, DIM))


class SoundEncoder(nn.Module):
    """float32 [B, T] to 1 token [B, 1, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv1d(1, DIM, 25, stride=5)

    def forward(self, audio: Tensor) -> Tensor:
        return self.convolve(audio[:, None]).square().mean(dim=2)[:, None]


class TextEncoder(nn.Module):
    """int32 ids and mask [B, L] to 1 token [B, 1, D]; neighbours count, so that places matter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(PIECES), DIM)
        self.mix = nn.Linear(2 * DIM, DIM)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = self.embed(input_ids.long()) * attention_mask[:, :, None]  # [B, L, D]
        pairs = torch.cat([kept[:, :-1], kept[:, 1:]], dim=2)  # [B, L - 1, 2 D]
        return torch.tanh(self.mix(pairs)).sum(dim=1, keepdim=True)


class TorchModel(nn.Module):
    """The three encoders and a real head, with placeholders that are not zero."""

    modalities = MODALITIES

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.encoders = nn.ModuleDict({"image": PictureEncoder(), "audio": SoundEncoder(), "text": TextEncoder()})
        self.head = Head(dict.fromkeys(MODALITIES, DIM), len(LABELS), FusionSettings(kind="low_rank", dim=8, hidden=16))
        for placeholder in self.head.placeholder.values():
            nn.init.normal_(placeholder)
        self.head.classify[-1].weight.data *= 30  # so that everything has a say that rounding cannot hide
        self.eval()

    def log_odds(self, inputs: Mapping[str, Tensor], presence: Tensor, label: int) -> Tensor:
        """[B], by torch's own log-softmax: ln p - ln(1 - p)."""
        rows = len(presence)
        tokens = {
            m: self.encoders[m](*(inputs[name].expand(rows, *inputs[name].shape[1:]) for name in SENSOR_TENSORS[m]))
            for m in MODALITIES
        }
        log_p = self.head(tokens, presence)[0].double().log_softmax(dim=1)  # [B, C]
        others = torch.arange(log_p.shape[1]) != label
        return log_p[:, label] - log_p[:, others].logsumexp(dim=1)


def tokenizer_document(*, mask: bool = True) -> bytes:
    """A WordPiece with [CLS] before each text; without [MASK] where `mask` is False."""
    pieces = {piece if mask or piece != "[MASK]" else "[other]": number for number, piece in enumerate(PIECES)}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", PIECES.index("[CLS]"))]
    )
    return tokenizer.to_str().encode()


def export_bundle(model: TorchModel, folder: Path) -> Bundle:
    """The model as fp32 parts."""
    inputs = {
        "image": torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8),
        "audio": torch.zeros(2, SAMPLES),
        "input_ids": torch.zeros(2, TOKENS, dtype=torch.int32),
        "attention_mask": torch.ones(2, TOKENS, dtype=torch.int32),
    }
    counts = {"image": 2, "audio": 1, "text": 1}
    parts = {
        m: _to_onnx(model.encoders[m], {name: inputs[name] for name in SENSOR_TENSORS[m]}, [token_tensor(m)])
        for m in MODALITIES
    }
    tokens = {token_tensor(m): torch.zeros(2, counts[m], DIM) for m in MODALITIES}
    head = HeadPart(model).eval()  # type: ignore[arg-type]
    parts[HEAD] = _to_onnx(head, {**tokens, "presence": torch.ones(2, 3)}, ("logits", "weights"))
    info = BundleInfo(
        name="<i>shapes</i>",
        labels=LABELS,
        image=ImageSpec(height=HEIGHT, width=WIDTH),
        audio=AudioSpec(sample_rate=RATE, samples=SAMPLES),
        text=TextSpec(max_tokens=TOKENS),
        tokens={m: TokenSpec(count=counts[m], dim=DIM) for m in MODALITIES},
        parts={"fp32": {part: PartInfo(file=part_file("fp32", part), precision="fp32") for part in parts}},
    )
    files = {part_file("fp32", part): content for part, content in parts.items()}
    return write_bundle(folder, info, {**files, "tokenizer.json": tokenizer_document()})
