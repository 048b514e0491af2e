"""The Conformer layer (Gulati et al. 2020), made lean by what the compiler's plan shows.

One feed-forward pair of twice the width instead of two halves with a norm behind them: as many weights, five kernels a
layer fewer. Batch first, so that no frame is transposed but round the depthwise convolution; one product makes Q, K and
V; the pointwise convolutions are Linear layers, which become INT8 products fused with the normalisation before them.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class FeedForward(nn.Sequential):
    """Two products with SiLU between them: [B, F, D] to what is added to it."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )


class SelfAttention(nn.Module):
    """Every frame attends to every frame."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, F, D] to what is added to it."""
        batch, length, dim = frames.shape
        split = self.qkv(self.norm(frames)).reshape(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, F, D / heads]
        rate = self.dropout.p if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate)  # [B, heads, F, D / heads]
        return self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, dim)))


class Convolution(nn.Module):
    """Every frame meets its neighbours: a gated product, a depthwise convolution, a product."""

    def __init__(self, dim: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.batch_norm = nn.BatchNorm1d(dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, F, D] to what is added to it."""
        gated = F.glu(self.gate(self.norm(frames)), dim=-1)  # [B, F, D]
        near = F.silu(self.batch_norm(self.depthwise(gated.transpose(1, 2))))  # [B, D, F]
        return self.dropout(self.out(near.transpose(1, 2)))


class ConformerLayer(nn.Module):
    """Frames [B, F, D] to frames: attention, convolution, feed-forward, each added to what it reads.

    Args:
        dim: width D, a multiple of `heads`; heads of a multiple of 8 need no padding in the device's attention kernel.
        hidden: width inside the feed-forward pair.
        heads: of the attention.
        kernel: frames that the depthwise convolution sees, odd.
        dropout: rate.
    """

    def __init__(self, dim: int, hidden: int, heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, heads, dropout)
        self.convolution = Convolution(dim, kernel, dropout)
        self.feed_forward = FeedForward(dim, hidden, dropout)

    def forward(self, frames: Tensor) -> Tensor:
        """One layer."""
        frames = frames + self.attention(frames)
        frames = frames + self.convolution(frames)
        return frames + self.feed_forward(frames)
