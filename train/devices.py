"""Where a training computes and how precisely: a GPU where there is one, in bfloat16 if it has that, else the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from edgefuse.train.distributed import device, here
from edgefuse.train.synced_norm import share_statistics


def prepare(model: nn.Module) -> torch.device:
    """Bring a model to this process's device, ready to learn beside those of the other processes."""
    place = device()
    model.to(place)
    if here().world > 1:
        share_statistics(model)
    if _has_bfloat16(place):
        keep_front_ends(model, place.type)
    return place


def keep_front_ends(model: nn.Module, kind: str) -> None:
    """Leave front ends in FP32, as the exported graph does: log powers do not survive bfloat16's 8 bits."""
    for module in model.modules():
        front_end = getattr(module, "frontend", None)
        if isinstance(front_end, nn.Module):
            front_end.forward = torch.autocast(kind, enabled=False)(front_end.forward)


@contextmanager
def on_device(place: torch.device) -> Iterator[None]:
    """New tensors lie on `place`, and products take bfloat16 where it has that."""
    if place.type == "cpu":
        yield
        return
    precision = torch.autocast(place.type, torch.bfloat16) if _has_bfloat16(place) else nullcontext()
    with place, precision:
        yield


def _has_bfloat16(place: torch.device) -> bool:
    return place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
