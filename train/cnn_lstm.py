"""The body of the CNN-LSTM sound encoder: what the convolutions of the stem hear, remembered in both directions."""

from __future__ import annotations

from torch import Tensor, nn


class Memory(nn.Module):
    """Frames [B, F, D] to frames that know what came before and after: bidirectional LSTM layers."""

    def __init__(self, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim // 2, layers, batch_first=True, dropout=dropout, bidirectional=True)

    def forward(self, frames: Tensor) -> Tensor:
        """All layers."""
        return self.lstm(frames)[0]
