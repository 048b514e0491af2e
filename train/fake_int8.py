"""INT8 as training feels it: what optimize/ will round is rounded in float, and gradients pass as if it were not.

The arithmetic and the choice of layers are those of optimize/ (qdq.py, histogram.py), which this room may not import;
tests/test_fake_int8.py holds the two to each other. Weights have one scale per output channel, activations one scale,
embedding tables one per row. Left in float: what stays FP16 on the device (the head, matrix-vector products), the
products inside an attention, and convolutions unless asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import frexp, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle
from torchvision.models import mobilenetv2, mobilenetv3

STEPS = 127  # INT8 steps on each side of zero
SMALLEST_SCALE = 6.2e-5  # as in optimize/qdq.py: FP16 loses bits of smaller ones
SMALLEST_TABLE = 100_000  # entries, as in optimize/qdq.py: a smaller embedding table stays FP16
BINS = 4096  # of the histogram that an activation's range is read from
CLIPS = 2.0 ** -torch.linspace(0, 3, 49, dtype=torch.float64)  # shares of the largest value that `threshold` tries
TINY = 1e-12  # a dead batch norm scales by less; its weights are not divided by zero
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_RESIDUAL_BLOCKS = (mobilenetv2.InvertedResidual, mobilenetv3.InvertedResidual)


def int8_scale(largest: Tensor) -> Tensor:
    """The scale that maps `largest` to 127, rounded to what FP16 holds exactly; never below SMALLEST_SCALE."""
    return (largest / STEPS).clamp(min=SMALLEST_SCALE).half().float()


def fake_int8(values: Tensor, scale: Tensor, lowest: int) -> Tensor:
    """`values` on the INT8 grid of `scale`: QuantizeLinear (half to even) and DequantizeLinear in float.

    The gradient passes straight through where the code is in range and is 0 where it is clipped (Bengio 2013; Jacob
    2018, section 3).

    Args:
        values: any shape.
        scale: broadcast against `values`.
        lowest: the least code, -128 for activations and -127 for weights.
    """
    return _FakeInt8.apply(values, scale, lowest)


class _FakeInt8(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, lowest: int) -> Tensor:
        codes = torch.round(values / scale)
        ctx.save_for_backward((codes >= lowest) & (codes <= STEPS))
        return codes.clamp(lowest, STEPS) * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


class Range:
    """The magnitudes of an activation over all samples, counted in BINS bins up to a power of two that grows."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.largest = 0.0
        self._exponent = -100

    def update(self, values: Tensor) -> None:
        """Count `values`, any shape."""
        magnitudes = values.detach().abs().flatten()
        self.largest = max(self.largest, float(magnitudes.max()))
        exponent = frexp(self.largest)[1] if self.largest else self._exponent
        if exponent > self._exponent:
            merged = min(BINS, 1 << (exponent - self._exponent))  # bins that become one
            kept = self.counts.reshape(-1, merged).sum(dim=1)
            self.counts = torch.cat([kept, torch.zeros(BINS - len(kept), dtype=torch.float64)])
            self._exponent = exponent
        bins = (magnitudes * (BINS / 2.0**self._exponent)).int()
        self.counts += torch.bincount(bins, minlength=BINS)

    def threshold(self) -> float:
        """The magnitude that becomes 127: where rounding plus clipping loses least in mean square (Nagel 2021, 3.1)."""
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (2.0**self._exponent / BINS)  # [BINS]
        tried = self.largest * CLIPS  # [49]
        steps = tried[:, None] / STEPS  # [49, 1]
        rounded = torch.round(centres / steps).clamp(max=STEPS) * steps  # [49, BINS]
        losses = ((rounded - centres) ** 2 * self.counts).sum(dim=1)  # [49]
        return float(tried[losses.argmin()])


class FakeInt8:
    """Watches some encoders on samples, then rounds in them what will be INT8 until `remove` is called.

    Args:
        encoders: modality -> encoder, in evaluation mode.
        batches: the tensors of some samples at a time, by modality, as its encoder takes them.
        convolutions: round convolutions too, with the batch norm behind them folded in as in the exported graph.
    """

    def __init__(
        self,
        encoders: Mapping[str, nn.Module],
        batches: Iterable[Mapping[str, Sequence[Tensor]]],
        *,
        convolutions: bool = False,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        seen = {layer: _Seen() for encoder in encoders.values() for layer in _candidates(encoder, convolutions)}
        _watch(encoders, seen, batches)
        norms = dict(norm for encoder in encoders.values() for norm in _folded_norms(encoder))
        self.layers = [layer for layer in seen if _becomes_int8(layer, seen[layer])]
        for layer in self.layers:
            if hasattr(layer, "weight"):  # a residual block has none, only its input is rounded
                parametrize.register_parametrization(layer, "weight", _FakeWeight(norms.get(layer)))
            if not isinstance(layer, nn.Embedding):
                scale = int8_scale(torch.tensor(seen[layer].range.threshold()))
                self._handles.append(layer.register_forward_pre_hook(_rounding(scale)))

    def remove(self) -> None:
        """Leave the layers their float weights, as training has changed them by now."""
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            if parametrize.is_parametrized(layer):
                parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


class _FakeWeight(nn.Module):
    """A weight on its INT8 grid, one scale per entry of axis 0, anew for every step since the weight moves."""

    def __init__(self, norm: _BatchNorm | None) -> None:
        super().__init__()
        self._norm = (norm,)  # in a tuple, or its parameters would be listed twice

    def forward(self, weight: Tensor) -> Tensor:
        gain = self._gain().view(-1, *[1] * (weight.ndim - 1))  # [1 or O, 1, ...]
        folded = weight * gain
        largest = folded.detach().abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)  # [O, 1, ...]
        return fake_int8(folded, int8_scale(largest), -STEPS) / gain

    def _gain(self) -> Tensor:
        """What the export multiplies the weight by when it folds the batch norm in."""
        norm = self._norm[0]
        if norm is None:
            return torch.ones(1)
        assert norm.running_var is not None
        gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return torch.where(gain.abs() < TINY, TINY, gain)


class _Seen:
    """What was seen of the input of a layer."""

    def __init__(self) -> None:
        self.range = Range()
        self.rows: int | None = None  # that one sample makes of it; None where the layer was never called

    def update(self, layer: nn.Module, values: Tensor, samples: int) -> None:
        """Take the input of a layer while its encoder reads `samples` samples."""
        if isinstance(layer, nn.Embedding):
            rows = prod(values.shape[1:])
        else:
            rows = prod(values.shape[1:-1] if isinstance(layer, nn.Linear) else values.shape[2:])
            self.range.update(values)
        if len(values) != samples:
            rows = 0  # position ids: the same for every sample, so the export makes a constant of the rows they name
        self.rows = rows if self.rows is None else min(rows, self.rows)


def _rounding(scale: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda _, inputs: (fake_int8(inputs[0], scale, -STEPS - 1), *inputs[1:])


def _candidates(encoder: nn.Module, convolutions: bool) -> list[nn.Module]:
    """Layers that multiply by a weight or look up its rows; the input of a residual block goes to its addition too."""
    kinds: tuple[type, ...] = (nn.Linear, nn.Embedding)
    if convolutions:
        kinds += (*_CONVOLUTIONS, *_RESIDUAL_BLOCKS)
    return [
        layer for layer in encoder.modules() if isinstance(layer, kinds) and getattr(layer, "use_res_connect", True)
    ]


def _watch(
    encoders: Mapping[str, nn.Module],
    seen: Mapping[nn.Module, _Seen],
    batches: Iterable[Mapping[str, Sequence[Tensor]]],
) -> None:
    samples = 0
    handles = [
        layer.register_forward_pre_hook(lambda layer, inputs: seen[layer].update(layer, inputs[0], samples))
        for layer in seen
    ]
    with torch.no_grad():
        for batch in batches:
            for modality, tensors in batch.items():
                samples = len(tensors[0])
                encoders[modality](*tensors)
    for handle in handles:
        handle.remove()


def _becomes_int8(layer: nn.Module, seen: _Seen) -> bool:
    """Whether optimize/ finds the layer (qdq.py, `refusal`) fit for INT8 kernels."""
    if isinstance(layer, nn.Embedding):
        return bool(seen.rows) and layer.weight.numel() >= SMALLEST_TABLE
    if not seen.rows or seen.rows == 1:
        return False  # never called, or a matrix-vector product
    if isinstance(layer, _RESIDUAL_BLOCKS):
        return True
    assert isinstance(layer.weight, Tensor)
    outputs, inputs, *kernel = layer.weight.shape
    if getattr(layer, "groups", 1) > 1:
        return outputs % 8 == 0 and min(kernel) >= 3
    if kernel and min(outputs, inputs) < 16:
        return (outputs % 8 == 0 or inputs % 8 == 0) and max(outputs, inputs) >= 16 and len(set(kernel)) == 1
    return min(outputs, inputs) >= 16


def _folded_norms(encoder: nn.Module) -> Iterator[tuple[nn.Module, _BatchNorm]]:
    """The convolutions with a batch norm right behind them, and that batch norm."""
    children = [list(module.children()) for module in encoder.modules()]
    for first, second in (pair for siblings in children for pair in pairwise(siblings)):
        if isinstance(first, _CONVOLUTIONS) and isinstance(second, _BatchNorm):
            yield first, second
