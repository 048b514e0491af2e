"""What a model costs to run: its multiply-adds on one line with all sensors, counted while it runs, and parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from edgefuse.train.data import Batch
from edgefuse.train.model import FusedModel
from edgefuse.train.objective import batch_logits


def model_cost(model: FusedModel, line: Batch) -> dict[str, int]:
    """{macs, parameters} of a model in evaluation mode on a batch of one line.

    Counted are the products of matrices and convolutions, as papers do. Gradients stay on, and attention takes its
    plain form: the fused kernels that torch would take hide their products from the count.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        batch_logits(model, line)
    return {"macs": counter.get_total_flops() // 2, "parameters": parameters(model)}


def parameters(module: nn.Module) -> int:
    """How many numbers a module learned."""
    return sum(parameter.numel() for parameter in module.parameters())
