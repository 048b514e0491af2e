"""The picture networks: each a row of a table; and layers in which the cells of a picture meet, once per picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, mobilenet_v3_large, mobilenet_v3_small

from edgefuse.runtime.errors import RecipeError
from edgefuse.train.conformer import FeedForward
from edgefuse.train.presence import MASKED_SCORE

AMPLITUDE = 0.2  # of the positions, so that what a cell shows is not drowned by where it is


class ImageNet(NamedTuple):
    """A network and what is kept of it."""

    build: Callable[..., nn.Module]  # torchvision's constructor or one like it; `features` is a Sequential
    dim: int  # channels of the last feature map that is kept
    stride: int = 32  # pixels from cell to cell of it
    blocks: int | None = None  # of `features` that are kept, from the first on; all where None


class Conv4(nn.Module):
    """Four strided convolutions, each with a batch norm, as before the relation network of Santoro 2017."""

    WIDTHS = (32, 64, 96, 128)

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        if weights:
            raise RecipeError("image.weights: found imagenet, which conv4 has none of; name a .safetensors file")
        steps = zip((3, *self.WIDTHS), self.WIDTHS, strict=False)
        self.features = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU())
                for before, after in steps
            )
        )


IMAGE_ENCODERS = {
    "mobilenet_v3_small": ImageNet(mobilenet_v3_small, 576),
    "mobilenet_v3_small_16": ImageNet(mobilenet_v3_small, 48, stride=16, blocks=9),  # finer cells
    "mobilenet_v3_small_8": ImageNet(mobilenet_v3_small, 24, stride=8, blocks=4),
    "mobilenet_v3_large": ImageNet(mobilenet_v3_large, 960),
    "mobilenet_v2": ImageNet(mobilenet_v2, 1280),
    "conv4": ImageNet(Conv4, Conv4.WIDTHS[3], stride=16),
    "conv3": ImageNet(Conv4, Conv4.WIDTHS[2], stride=8, blocks=3),
}


class CellLayers(nn.Module):
    """Cells [B, N, C] to tokens [B, N or slots, DIM] that know where they are, and of each other by transformer layers.

    How objects stand to each other is worked out here, once per picture, and not per question in the head. With slots,
    as many learned queries read the cells first (Set Transformer, Lee 2019) and stand in for them: a handful of objects
    to relate, and to ask, where there were dozens of cells.
    """

    DIM = 128
    places: Tensor  # [1, N, 2]: of the cells

    def __init__(self, channels: int, rows: int, columns: int, layers: int, slots: int) -> None:
        super().__init__()
        self.count = slots or rows * columns
        self.project = nn.Linear(channels, self.DIM)
        self.position = nn.Parameter(plane_waves(rows, columns, self.DIM))
        self.slots = Slots(slots, self.DIM) if slots else None
        self.layers = nn.ModuleList(CellLayer(self.DIM) for _ in range(layers))
        self.norm = nn.LayerNorm(self.DIM)
        self.register_buffer("places", middles(rows, columns)[None], persistent=False)

    def forward(self, cells: Tensor) -> Tensor:
        """All layers."""
        tokens, places = self.project(cells) + self.position, self.places  # [B, N, DIM], [1, N, 2]
        if self.slots:
            tokens, places = self.slots(tokens, places)  # [B, slots, DIM], [B, slots, 2]
        apart = distances(places)  # [B or 1, N or slots, N or slots]
        for layer in self.layers:
            tokens = layer(tokens, apart)
        return self.norm(tokens)


class Slots(nn.Module):
    """Learned queries [S, D] that each read the cells [B, N, D] they match: [B, S, D]."""

    SHARPNESS = 3.0  # of the first queries: one that reads all cells alike learns what the whole picture holds

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(count, dim) * self.SHARPNESS)
        self.norm = nn.LayerNorm(dim)
        self.value = nn.Linear(dim, dim)

    def forward(self, cells: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """One head each: a slot looks for one kind of thing. Its place is the mean of `places` [1, N, 2] it reads."""
        cells = self.norm(cells)
        share = (self.query @ cells.transpose(1, 2) / cells.shape[2] ** 0.5).softmax(dim=2)  # [B, S, N]
        return self.value(share @ cells) + self.query, share @ places  # [B, S, D], [B, S, 2]


class CellLayer(nn.Module):
    """A pre-norm transformer layer that begins as nearly nothing (LayerScale, Touvron 2021).

    So a token first learns what it shows by itself. With full layers from the start it knows what the whole picture
    holds before it knows its own object, and questions about one object stay at what the counts allow.
    """

    SCALE = 0.1

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = NearAndFar(dim)
        self.feed_forward = FeedForward(dim, 2 * dim, dropout=0.0)
        self.met, self.thought = (nn.Parameter(torch.full((dim,), self.SCALE)) for _ in range(2))

    def forward(self, tokens: Tensor, apart: Tensor) -> Tensor:
        """[B, N, D] to [B, N, D], where `apart` [B or 1, N, N] are distances in sides of the picture."""
        tokens = tokens + self.met * self.attention(tokens, apart)
        return tokens + self.thought * self.feed_forward(tokens)


class NearAndFar(nn.Module):
    """Every token attends to the others: two heads first to those that are near, two to those that are far.

    A score by distance is a learned slope per head (ALiBi, Press 2022, in two dimensions): which object is nearest is a
    product of two positions, of which attention by content sees nothing at first.
    """

    SLOPES = (-20.0, -7.5, 7.5, 20.0)  # of each head, per side of the picture

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.slope = nn.Parameter(torch.tensor(self.SLOPES)[:, None, None])

    def forward(self, tokens: Tensor, apart: Tensor) -> Tensor:
        """[B, N, D] and distances [B or 1, N, N] to what is added to the tokens.

        Written out: torch's exporter takes the result of its own attention with a bias for contiguous, and fails.
        """
        batch, count, dim = tokens.shape
        heads = len(self.SLOPES)
        split = self.qkv(self.norm(tokens)).reshape(batch, count, 3, heads, dim // heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D / heads]
        bias = self.slope * apart[:, None] + MASKED_SCORE * torch.eye(count)  # [B or 1, heads, N, N]
        share = (query @ key.transpose(2, 3) * (dim // heads) ** -0.5 + bias).softmax(dim=3)  # [B, heads, N, N]
        return self.out((share @ value).transpose(1, 2).reshape(batch, count, dim))


def middles(rows: int, columns: int) -> Tensor:
    """Where the cells of a picture are, [rows * columns, 2]: down and right, in longer sides of the picture."""
    place = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))  # [N, 2]
    return (place + 0.5) / max(rows, columns)


def distances(places: Tensor) -> Tensor:
    """Between any two of places [B, N, 2]: [B, N, N]."""
    square = (places[:, :, None] - places[:, None]).square().sum(dim=3)  # [B, N, N]
    return (square + 1e-4).sqrt()  # which has a slope at 0


def plane_waves(rows: int, columns: int, dim: int) -> Tensor:
    """What learned positions start from, [rows * columns, dim]: sines and cosines of height and width (Vaswani 2017).

    The longest wave is four times the picture: over a quarter of it a sine is nearly the place itself.
    """
    count = dim // 4
    frequency = 2 * math.pi * 0.25 * 2 ** (torch.arange(count) * 4 / count)  # per picture: 1/4 to 4 waves
    down, right = (torch.arange(n) / n + 0.5 / n - 0.5 for n in (rows, columns))  # -0.5..0.5, the cells' middles
    y, x = down[:, None, None] * frequency, right[None, :, None] * frequency  # [R, 1, count], [1, C, count]
    waves = [wave.expand(rows, columns, count) for wave in (y.sin(), y.cos(), x.sin(), x.cos())]
    return AMPLITUDE * torch.cat(waves, dim=2).flatten(0, 1)
