"""The state of a run in one safetensors file, so that a run that was killed goes on exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic
from edgefuse.train.distributed import here
from edgefuse.train.selection import Selection, below

CHECKPOINT_FILE = "checkpoint.safetensors"


class Checkpoint:
    """Weights, optimizer, the number of steps done, and which weights were the best so far, under one hash."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKPOINT_FILE

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int, selection: Selection) -> None:
        """Write it, whole or not at all; of several processes, which are all alike, the first one does."""
        if here().rank:
            return
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        tensors |= {f"selection.{name}": value for name, value in selection.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        contiguous = {name: value.cpu().contiguous() for name, value in tensors.items()}
        metadata = {"step": str(step), "sha256": _sha256(contiguous, step)}
        write_atomic(self.path, save(contiguous, metadata=metadata))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, selection: Selection) -> int:
        """Load it where there is one; returns the number of steps done.

        Raises:
            RecipeError: the file is damaged or belongs to another model.
        """
        if not self.path.exists():
            return 0
        try:
            data = self.path.read_bytes()
            tensors, metadata = load(data), _safetensors_metadata(data)
            step = int(metadata["step"])
            if metadata.get("sha256") != _sha256(tensors, step):
                raise ValueError("its content is not what was saved")
            model.load_state_dict(below("model.", tensors))
            selection.load_state_dict(below("selection.", tensors))
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in below("optimizer.", tensors).items():
                number, key = name.split(".", 1)
                state.setdefault(int(number), {})[key] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        except Exception as error:  # safetensors raises its own error, torch RuntimeError
            reason = short_reason(error)
            raise RecipeError(f"{self.path} cannot be resumed ({reason}); delete it to start the run again") from None
        return step


def short_reason(error: Exception) -> str:
    """The start of a message as one line; torch lists every tensor that does not fit."""
    return " ".join(str(error).split())[:200]


def _safetensors_metadata(data: bytes) -> dict[str, str]:
    """The string metadata in a safetensors header (8 bytes of length, then JSON)."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    return dict(header["__metadata__"])


def _sha256(tensors: Mapping[str, Tensor], step: int) -> str:
    """A hash of every name, type, shape and byte, and of the step."""
    digest = hashlib.sha256(str(step).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
