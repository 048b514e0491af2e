"""The worst case near a batch: pixels, samples and word embeddings moved within a small ball so that the loss rises.

FGSM (Goodfellow 2015) and PGD (Madry 2018) on what the picture's and the sound's encoders take, each value within a
reach and within its range; FreeLB's ball (Zhu 2020) round the word embeddings of each sentence. Training adds the loss
of that worst case to the step's; the search itself runs in evaluation mode (TRADES, Zhang 2019), so that neither
batch norms nor dropout notice it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgefuse.train.data import Batch
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import Guide
from edgefuse.train.settings import AdversarialSettings

RANGES = {"image": (0.0, 255.0), "audio": (-1.0, 1.0)}  # that no sensor leaves
Moves = dict[str, Tensor]  # modality -> what is added to pixels [U, H, W, 3], samples [U, T], embeddings [U, L, D]
Loss = Callable[[Batch], Tensor]


def with_adversary(guide: Guide | None, model: FusedModel, settings: AdversarialSettings, loss: Loss) -> Guide | None:
    """`guide`, and with it what a step learns from its worst case, if `settings` let any sensor move."""
    if not any((settings.image, settings.audio, settings.text)):
        return guide

    def both(batch: Batch, logits: Tensor, fused: Tensor) -> dict[str, Tensor]:
        moves = worst_case(model, batch, settings, loss, random_start=True)
        with moved(model, batch, moves) as near:
            terms = {"adversarial": settings.weight * loss(near)}
        return {**(guide(batch, logits, fused) if guide else {}), **terms}

    return both


def worst_case(
    model: FusedModel, batch: Batch, settings: AdversarialSettings, loss: Loss, *, random_start: bool
) -> Moves:
    """The moves within the reaches of `settings` that gradient ascent finds.

    A random start with a step of 1.25 keeps training by FGSM from overfitting to it (Wong 2020); without one, a single
    step ends in the corner that FGSM means. Several steps are 2.5 / steps long, so that all of the ball can be reached.
    """
    values = {m: x for m, x in _values(model, batch).items() if getattr(settings, m)}
    reach = {m: _reach(m, x, getattr(settings, m)) for m, x in values.items()}
    size = 1.25 if settings.steps == 1 else 2.5 / settings.steps
    moves = {m: _start(m, x, reach[m]) if random_start else torch.zeros_like(x) for m, x in values.items()}
    with _evaluating(model):
        for _ in range(settings.steps if values else 0):
            moves = {m: move.requires_grad_() for m, move in moves.items()}
            with moved(model, batch, moves) as near:
                gradients = torch.autograd.grad(loss(near), list(moves.values()))
            for (m, move), gradient in zip(moves.items(), gradients, strict=True):
                further = move.detach() + size * reach[m] * _direction(m, gradient)
                moves[m] = _project(m, values[m], further, reach[m])
    return moves


@contextmanager
def moved(model: FusedModel, batch: Batch, moves: Mapping[str, Tensor]) -> Iterator[Batch]:
    """The batch with its pictures and sounds moved; the word embeddings are moved while the block lasts."""
    inputs = {m: batch.inputs[m] + move for m, move in moves.items() if m in RANGES}
    hooks = []
    if "text" in moves:
        hooks.append(_word_embeddings(model).register_forward_hook(lambda _, __, words: words + moves["text"]))
    try:
        yield replace(batch, inputs={**batch.inputs, **inputs})
    finally:
        for hook in hooks:
            hook.remove()


def _values(model: FusedModel, batch: Batch) -> dict[str, Tensor]:
    """What can be moved of each modality, as float; padding of texts is zero and stays it."""
    values = {m: batch.inputs[m].float() for m in batch.index if m in RANGES}
    if "text" in batch.index:
        with torch.no_grad():
            words = _word_embeddings(model)(batch.inputs["input_ids"])  # [U, L, D]
        values["text"] = words * batch.inputs["attention_mask"][:, :, None]
    return values


def _word_embeddings(model: FusedModel) -> nn.Module:
    encoder: Any = model.encoders["text"]
    table: nn.Module = encoder.bert.get_input_embeddings()
    return table


def _reach(modality: str, values: Tensor, reach: float) -> Tensor:
    """How far each value may go, or each sentence as a whole [U, 1, 1]."""
    return _norm(values) * reach if modality == "text" else torch.full((), reach, device=values.device)


def _start(modality: str, values: Tensor, reach: Tensor) -> Tensor:
    if modality != "text":
        return _project(modality, values, reach * (2 * torch.rand_like(values) - 1), reach)
    drawn = torch.randn_like(values) * (values != 0)
    return reach * torch.rand_like(reach) * _direction(modality, drawn)


def _direction(modality: str, gradient: Tensor) -> Tensor:
    """Steepest ascent within the ball: signs in a box, the gradient itself in a sphere."""
    return gradient / (_norm(gradient) + 1e-12) if modality == "text" else gradient.sign()


def _project(modality: str, values: Tensor, moves: Tensor, reach: Tensor) -> Tensor:
    """The nearest moves within reach that leave the range of the sensor, or the padding of a text, alone."""
    if modality == "text":
        kept = moves * (values != 0)
        return kept * (reach / (_norm(kept) + 1e-12)).clamp(max=1)
    low, high = RANGES[modality]
    return moves.clamp(-reach, reach).clamp(low - values, high - values)


def _norm(sentences: Tensor) -> Tensor:
    """Of each sentence [U, L, D]: [U, 1, 1]."""
    return sentences.flatten(1).norm(dim=1)[:, None, None]


@contextmanager
def _evaluating(model: FusedModel) -> Iterator[None]:
    """Evaluation mode for the block; afterwards every module is as it was, frozen ones too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
