"""A teacher's answers to every training line, computed once and kept beside its weights in safetensors shards.

The teacher is shown all sensors of a line as they stand in the manifest: the line's own sound, the picture unmirrored
and nothing spoiled. What a step draws for the student (another voice for the same sentence, a mirrored or noisy
picture, fewer sensors) changes what is seen and never what is right, so one answer serves all draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from edgefuse.runtime.errors import RecipeError
from edgefuse.runtime.files import write_atomic
from edgefuse.runtime.manifest import Example, fingerprint
from edgefuse.runtime.shards import member
from edgefuse.train.data import Loader
from edgefuse.train.data_check import files_of
from edgefuse.train.devices import on_device
from edgefuse.train.distributed import device
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_fused
from edgefuse.train.runs import Run

# Folder in the teacher's run: <sha256 of its weights>-<fingerprint of the lines>-<their files>/00000.safetensors
ANSWERS = "answers"
SHARD = 2048  # lines
BATCH = 128  # lines that the teacher sees at once
AXES_FILE = "axes.safetensors"


@dataclass(frozen=True)
class Answers:
    """What a teacher made of some lines; the shards are mapped into memory, so only what a step asks for is read."""

    folder: Path
    shards: list[dict[str, Tensor]]  # logits [SHARD, C] and fused [SHARD, E], the last shard shorter

    def rows(self, name: str, lines: Sequence[int]) -> Tensor:
        """`logits` [B, C] or `fused` [B, E] of the lines with these numbers."""
        return torch.stack([self.shards[line // SHARD][name][line % SHARD] for line in lines])

    def axes(self) -> tuple[Tensor, Tensor]:
        """Mean [E] and principal axes [E, E], largest first, of all fused embeddings; they have a mean square of 1."""
        path = self.folder / AXES_FILE
        if not path.exists():
            write_atomic(path, save(self._principal_axes()))
        found = load_file(path)
        return found["mean"], found["axes"]

    def _principal_axes(self) -> dict[str, Tensor]:
        count = sum(len(shard["fused"]) for shard in self.shards)
        nothing = torch.zeros(self.shards[0]["fused"].shape[1], dtype=torch.float64)  # [E]
        mean = sum((shard["fused"].double().sum(dim=0) for shard in self.shards), nothing) / count  # [E]
        products = ((x := shard["fused"].double() - mean).T @ x for shard in self.shards)
        variance, axes = torch.linalg.eigh(sum(products, torch.outer(nothing, nothing)) / count)  # ascending
        scale = variance.mean().clamp(min=1e-12).sqrt()
        return {"mean": mean.float(), "axes": (axes.flip(1) / scale).float().contiguous()}


def answers(teacher: Run, examples: Sequence[Example]) -> Answers:
    """The teacher's answers to `examples`, from its cache; shards that are missing or cut off are made (again).

    Raises:
        RecipeError: the teacher is no finished run, or reads none of the sensors that a line has.
        ManifestError: a line's file cannot be decoded.
    """
    blind = next((e for e in examples if not teacher.recipe.seen(e)), None)
    if blind is not None:
        reads = ", ".join(teacher.recipe.modalities)
        raise RecipeError(
            f"{blind.where} has none of what the teacher {teacher.folder} reads ({reads}); choose another"
        )
    asked = f"{teacher.weights_sha256()[:16]}-{fingerprint(examples)}-{_files_state(examples)}"
    folder = teacher.folder / ANSWERS / asked
    parts = [examples[start : start + SHARD] for start in range(0, len(examples), SHARD)]
    paths = [folder / f"{number:05d}.safetensors" for number in range(len(parts))]
    missing = [number for number, path in enumerate(paths) if not _is_whole(path, len(parts[number]))]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        model, loader = (
            teacher.trained_model().to(device()),
            Loader(teacher.recipe, teacher.labels, teacher.text_tokenizer()),
        )
        for number in track(missing, f"answers of {teacher.folder.name}", console=Console(stderr=True)):
            write_atomic(paths[number], save(_answer(model, loader, parts[number])))
    return Answers(folder, [load_file(path) for path in paths])


def _files_state(examples: Sequence[Example]) -> str:
    """A short hash of what the files were when they were asked about, by their dates and sizes.

    Generated again with another seed, or of another corpus, files have the same names and other contents.
    """
    digest = hashlib.sha256()
    for path in dict.fromkeys(path for example in examples for _, path in files_of(example)):
        if shard := member(path):
            digest.update(shard.sha256.encode())
        else:
            status = Path(path).stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _is_whole(path: Path, lines: int) -> bool:
    try:
        with safe_open(path, "pt") as file:  # refuses a file that is shorter than its header says
            return all(file.get_slice(name).get_shape()[0] == lines for name in ("logits", "fused"))
    except Exception:  # missing, or safetensors' own error
        return False


@torch.no_grad()
def _answer(model: FusedModel, loader: Loader, examples: Sequence[Example]) -> dict[str, Tensor]:
    place = next(model.parameters()).device
    found = []
    for start in range(0, len(examples), BATCH):
        batch = loader.whole(examples[start : start + BATCH]).to(place)
        with on_device(place):
            fused, _ = batch_fused(model, batch)  # [B, E]
            found.append((model.head.classify(fused).float().cpu(), fused.float().cpu()))
    logits, embeddings = zip(*found, strict=True)
    return {"logits": torch.cat(logits), "fused": torch.cat(embeddings)}
