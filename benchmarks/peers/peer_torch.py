"""The trained run in PyTorch: eager or compiled, behind our preprocessing or that of Hugging Face and torchvision.

It is the one file of benchmarks/ that imports train/: here the training framework is the peer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgefuse.benchmarks.peers.contract import Job, Opened, Query, our_host

EAGER, COMPILED, PIPELINE = "eager", "compiled", "pipeline"


def open_peer(option: str, job: Job) -> Opened:
    """The model of the job's run, as `edgefuse train` left it.

    Raises:
        RecipeError: the run is not there or not trained to its end.
    """
    import torch

    from edgefuse.runtime.bundle import SENSOR_TENSORS
    from edgefuse.train.runs import Run

    torch.set_num_threads(job.threads)
    assert job.run is not None  # run.py leaves the peer out without one
    run = Run.open(Path(job.run))
    model: Any = run.trained_model()
    names = [name for modality in run.recipe.modalities for name in SENSOR_TENSORS[modality]]
    called = torch.compile(model) if option == COMPILED else model

    @torch.inference_mode()
    def infer(tensors: Any) -> np.ndarray:
        given = {name: torch.as_tensor(tensors[name]) for name in names}
        logits, _ = called(given, torch.as_tensor(tensors["presence"]))
        return logits.numpy()

    return Opened(_pipeline(run) if option == PIPELINE else our_host(job), infer)


def _pipeline(run: Any) -> Callable[[Sequence[Query]], dict[str, Any]]:
    """What one writes with Pillow, torchvision, torchaudio and a Hugging Face tokenizer; a missing sensor is zeros."""
    import soundfile
    import torch
    from PIL import Image
    from torchaudio.functional import resample
    from torchvision.transforms import v2
    from transformers import PreTrainedTokenizerFast

    from edgefuse.runtime.bundle import TOKENIZER_FILE
    from edgefuse.train.model import specs_of

    specs = specs_of(run.recipe)

    def pictures(paths: Sequence[str | None]) -> dict[str, Any]:
        size = (specs["image"].height, specs["image"].width)
        resize = v2.Compose([v2.PILToTensor(), v2.Resize(size, antialias=True)])
        black = torch.zeros((3, *size), dtype=torch.uint8)
        found = [black if path is None else resize(Image.open(path).convert("RGB")) for path in paths]
        return {"image": torch.stack(found).permute(0, 2, 3, 1)}  # [B, H, W, 3]

    def sounds(paths: Sequence[str | None]) -> dict[str, Any]:
        audio = torch.zeros((len(paths), specs["audio"].samples))  # [B, T]
        for row, path in zip(audio, paths, strict=True):
            if path is not None:
                pcm, rate = soundfile.read(path, dtype="float32", always_2d=True)
                mono = resample(torch.from_numpy(pcm).mean(dim=1), rate, specs["audio"].sample_rate)[: len(row)]
                row[: len(mono)] = mono
        return {"audio": audio}

    if "text" in specs:
        pieces = PreTrainedTokenizerFast(
            tokenizer_file=str(run.folder / TOKENIZER_FILE), pad_token="[PAD]", unk_token="[UNK]"
        )

    def texts(given: Sequence[str | None]) -> dict[str, Any]:
        about: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": specs["text"].max_tokens}
        found = pieces([text or "" for text in given], **about, return_tensors="pt")
        return {name: found[name].int() for name in ("input_ids", "attention_mask")}  # [B, L]

    readers = {"image": pictures, "audio": sounds, "text": texts}

    def prepare(queries: Sequence[Query]) -> dict[str, Any]:
        tensors: dict[str, Any] = {}
        for modality in specs:
            tensors |= readers[modality]([query.get(modality) for query in queries])
        tensors["presence"] = torch.tensor([[float(m in query) for m in specs] for query in queries])  # [B, M]
        return tensors

    return prepare
