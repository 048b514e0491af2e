"""The state of a run in one safetensors file, so that a run that was killed goes on exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic

CHECKPOINT_FILE = "checkpoint.safetensors"


class Checkpoint:
    """The state of a run in one safetensors file: weights, optimizer, and the number of steps done."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKPOINT_FILE

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write it, whole or not at all."""
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        write_atomic(self.path, save(contiguous, metadata={"step": str(step)}))

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load it where there is one; returns the number of steps done.

        Raises:
            RecipeError: the file is damaged or belongs to another model.
        """
        if not self.path.exists():
            return 0
        try:
            data = self.path.read_bytes()
            tensors = load(data)
            step = int(_safetensors_metadata(data)["step"])
            model.load_state_dict({n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")})
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("optimizer."):
                    _, number, key = name.split(".", 2)
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
