"""What a model costs to run: its multiply-adds on one line with all sensors, counted while it runs, and parameters."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgefuse.train.data import Batch
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits


def model_cost(model: FusedModel, line: Batch) -> dict[str, int]:
    """{macs, parameters} of a model in evaluation mode on a batch of one line."""
    return {"macs": count_macs(lambda: batch_logits(model, line)), "parameters": parameters(model)}


def count_macs(work: Callable[[], object]) -> int:
    """Multiply-adds of the products of matrices and the convolutions in `work`, which is what papers count.

    Gradients stay on, and attention takes its plain form: the fused kernels that torch would take hide their products.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


def parameters(module: nn.Module) -> int:
    """How many numbers a module learned."""
    return sum(parameter.numel() for parameter in module.parameters())
