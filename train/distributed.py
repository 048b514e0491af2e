"""One training in several processes: each encodes its share of a step's sensors, and all of them see the whole step.

torchrun, accelerate and SLURM's srun around them say in environment variables who a process is. Every process holds
the model and takes the same steps. It decodes and encodes its share of the distinct sensors and fuses its share of the
lines; what comes out is gathered, so that each process computes the loss of the whole batch, contrastive terms
included. With L the same everywhere, the parameters' gradient is the mean over the processes.

torch's DistributedDataParallel is not used: it wants one forward() whose parameters are all used, while here a step
may need no sound at all, and the loss lies behind a gather. One flat bucket after backward() is exact and simple.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgefuse.runtime.errors import PeerError

PATIENCE = timedelta(hours=6)  # for rank 0 to prepare: teachers may answer all lines first


@dataclass(frozen=True)
class Place:
    """Which of how many processes."""

    rank: int = 0
    world: int = 1

    def share(self, count: int) -> slice:
        """The rows of `count` that this process works on: all of them where there is not one for each process."""
        if count < self.world:
            return slice(0, count)
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)


ALONE = Place()


def here() -> Place:
    """This process among those that joined."""
    return Place(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


@contextmanager
def joined() -> Iterator[None]:
    """Work as one of the processes that the environment names; alone, nothing changes.

    Raises:
        PeerError: the environment does not fit, or another process ended. Only rank 0 says the latter, since the
            process that failed says why.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise PeerError(f"WORLD_SIZE is {world} but {', '.join(missing)} is not set; start the processes by torchrun")
    dist.init_process_group("nccl" if _own_gpu() else "gloo", timeout=PATIENCE)
    try:
        yield
    except PeerError:
        if here().rank == 0:
            raise
        raise SystemExit(1) from None
    _wait_for_all()  # what rank 0 writes at the end is there for all
    dist.destroy_process_group()


def refuse_others(verb: str) -> None:
    """What several processes would only do several times over, and into one folder, is done by one.

    Raises:
        PeerError: this is one process of several.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        raise PeerError(f"{verb} works in one process, and WORLD_SIZE is {world}; start it without torchrun")


@contextmanager
def first() -> Iterator[None]:
    """Rank 0 runs the block before the others begin it: what it refuses is said once, what it writes is there."""
    if here().rank > 0:
        _wait_for_all()
    yield
    if here().rank == 0:
        _wait_for_all()


def device() -> torch.device:
    """The GPU of this process, the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def summed(own: Tensor) -> Tensor:
    """The sum over all processes, through which gradients flow back to each."""
    return own if here().world == 1 else _Sum.apply(own)


def gathered(own: Tensor, count: int) -> Tensor:
    """All `count` rows, where `own` holds this process's share of them."""
    if len(own) == count:
        return own
    rows = here().share(count)
    before, after = own.new_zeros(rows.start, *own.shape[1:]), own.new_zeros(count - rows.stop, *own.shape[1:])
    return summed(torch.cat([before, own, after]))  # a sum, since shares differ in length


def part_ways() -> None:
    """From here to the next seed each process draws noise of its own: its rows are other ones."""
    if here().rank:
        torch.manual_seed(torch.initial_seed() + (here().rank << 40))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give every process the mean gradient, in one bucket; a parameter that no process used keeps none."""
    world = here().world
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world == 1 or not gradients:
        return
    bucket = torch.cat([gradient.flatten() for gradient in gradients])
    _all_reduce(bucket)
    means = (bucket / world).split([gradient.numel() for gradient in gradients])
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))


def agreed(values: dict[str, float]) -> dict[str, float]:
    """Rank 0's numbers: a decision that hangs on the last bit must be the same everywhere."""
    if here().world == 1:
        return values
    told = torch.tensor(list(values.values()) if here().rank == 0 else [0.0] * len(values), dtype=torch.float64)
    told = told.to(device())
    _all_reduce(told)
    return dict(zip(values, told.tolist(), strict=True))


class _Sum(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduce of the gradients."""

    @staticmethod
    def forward(ctx: object, own: Tensor) -> Tensor:
        total = own.clone()
        _all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        _all_reduce(total)
        return total


def _all_reduce(tensor: Tensor) -> None:
    try:
        dist.all_reduce(tensor)
    except RuntimeError:  # gloo has no error of its own
        raise PeerError(
            "another process of this training ended; what it said stands above, "
            "and the same command goes on from the last checkpoint"
        ) from None


def _wait_for_all() -> None:
    if dist.is_initialized():
        _all_reduce(torch.zeros(1, device=device()))


def _own_gpu() -> bool:
    """Take the GPU with this process's number on its machine; False where the machine has none."""
    if not torch.cuda.is_available():
        return False
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise PeerError(f"process {local} of this machine has no GPU; it has {found}: start --nproc_per_node={found}")
    torch.cuda.set_device(local)
    return True
