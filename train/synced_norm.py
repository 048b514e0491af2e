"""Batch norms whose statistics are those of the whole step and not of one process's share, on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edgefuse.train.distributed import summed


class SyncedNorm(_BatchNorm):
    """Batch normalisation (Ioffe & Szegedy 2015) over the rows of all processes, with the names of the one it replaces.

    torch's own SyncBatchNorm takes tensors on GPUs only, where it is the faster one.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, dtype=norm.weight.dtype)
        self.load_state_dict(norm.state_dict())

    def forward(self, planes: Tensor) -> Tensor:
        """Normalise [B, C, ...]; the variance is taken around the common mean, which no rounding spoils."""
        if not self.training:
            return super().forward(planes)
        axes = [axis for axis in range(planes.ndim) if axis != 1]
        shape = [1, -1] + [1] * (planes.ndim - 2)
        own = planes.new_tensor([planes.numel() / planes.shape[1]])
        total = summed(torch.cat([planes.sum(dim=axes), own]))  # [C + 1]
        count = total[-1].detach()
        mean = total[:-1] / count  # [C]
        centred = planes - mean.view(shape)
        variance = summed(centred.square().sum(dim=axes)) / count  # [C]
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)  # [C]
        return centred * scale.view(shape) + self.bias.view(shape)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        for buffer, value in ((self.running_mean, mean), (self.running_var, variance)):
            if buffer is not None and self.momentum is not None:
                buffer.lerp_(value, self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)

    def _check_input_dim(self, input: Tensor) -> None:
        """Every number of dimensions is fine."""


def share_statistics(module: nn.Module) -> None:
    """Replace every batch norm inside `module` by one that all processes share."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            synced = nn.SyncBatchNorm.convert_sync_batchnorm(child) if child.weight.is_cuda else SyncedNorm(child)
            setattr(module, name, synced.train(child.training))
        else:
            share_statistics(child)
