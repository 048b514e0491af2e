"""Plans which blocks of a part compute in INT8: the cheapest form by what cost.py tells, and ways back from it.

A block is every node of a part with the same task (the same operator, shape and producer), so a block of a transformer
spans its layers. Weight products and tables begin in INT8, convolutions and attentions in FP16; then each block in turn
is switched, and stays switched where the whole part gets cheaper. What the gate refuses goes back to FP16 block by
block, the noisiest first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from edgefuse.optimize.cost import Cost
from edgefuse.optimize.graph import Graph
from edgefuse.optimize.ptq import Calibrated
from edgefuse.optimize.qdq import Product, Site
from edgefuse.optimize.tune import Tuned
from edgefuse.runtime.backend import Tensors
from edgefuse.runtime.backend_onnx import open_session


@dataclass(frozen=True, slots=True)
class Block:
    """Nodes that are switched together."""

    name: str
    sites: tuple[Site, ...] = ()
    products: tuple[Product, ...] = ()
    by_default: bool = False  # INT8 before anything is compiled


@dataclass(frozen=True, slots=True)
class Form:
    """What a part costs with some blocks in INT8. Many are compiled, so its ONNX is made again where it is wanted."""

    int8: frozenset[str]  # names of its INT8 blocks
    cost: Cost


def find_blocks(part: Calibrated) -> list[Block]:
    """The blocks of a calibrated part, those with the most weights first."""
    groups: dict[str, list[Site]] = defaultdict(list)
    for site in part.placed:
        groups[_task(part.graph, site)].append(site)
    blocks = [
        Block(f"{len(sites)} {task}", tuple(sites), by_default=sites[0].op != "Conv") for task, sites in groups.items()
    ]
    blocks.sort(key=lambda block: -sum(prod(site.shape) for site in block.sites))
    if part.products:
        blocks.append(Block(f"{len(part.products) // 2} attention", products=tuple(part.products)))
    return blocks


def _task(graph: Graph, site: Site) -> str:
    if site.op == "Conv":
        kind = "depthwise" if site.groups > 1 else "pointwise" if prod(site.shape[2:]) == 1 else "dense"
        return f"{kind} Conv"
    size = "x".join(map(str, site.shape))
    if site.op == "Gather":
        return f"table {size}"
    producer = graph.producers.get(site.activation or "")
    return f"{site.op} {size}" + (f" after {producer.op_type}" if producer else "")


class Forms:
    """Makes and compiles forms of one part, each once.

    Args:
        tuned: the part and how it is quantized.
        cost_of: ONNX bytes -> cost.
    """

    def __init__(self, tuned: Tuned, cost_of: Callable[[bytes], Cost]) -> None:
        self.tuned = tuned
        self.blocks = find_blocks(tuned.part)
        self.made: dict[frozenset[str], Form] = {}
        self.best: Form | None = None  # the cheapest, once it was looked for
        self._cost_of = cost_of

    def model(self, int8: Collection[str]) -> bytes:
        """The ONNX bytes with these blocks in INT8."""
        chosen = [block for block in self.blocks if block.name in int8]
        sites = [site for block in chosen for site in block.sites]
        products = [product for block in chosen for product in block.products]
        return self.tuned.model(sites, products)

    def form(self, int8: Collection[str]) -> Form:
        """The form with these blocks in INT8, compiled."""
        key = frozenset(int8)
        if key not in self.made:
            self.made[key] = Form(key, self._cost_of(self.model(key)))
        return self.made[key]

    def cheapest(self) -> Form:
        """The form that no single switch makes cheaper, in one round over the blocks."""
        best = self.form({block.name for block in self.blocks if block.by_default})
        for block in self.blocks:
            switched = self.form(best.int8 ^ {block.name})
            if switched.cost.beats(best.cost):
                best = switched
        fp16 = self.form(())
        self.best = best if best.cost.beats(fp16.cost) else fp16
        return self.best

    def noisiest(self, form: Form, batch: Tensors) -> list[str]:
        """The INT8 blocks of `form`, the one first that alone moves the part's output farthest from FP16's."""
        exact = _output(self.model(()), batch)
        error = {
            name: float(np.square(_output(self.model({name}), batch) - exact).mean()) for name in sorted(form.int8)
        }
        return sorted(error, key=error.__getitem__, reverse=True)

    def reasons(self, chosen: Collection[str]) -> list[dict[str, str]]:
        """Why each block is what it is where those named in `chosen` are in INT8: {block, precision, why}."""
        best = self.best.int8 if self.best else frozenset(chosen)
        rows = []
        for block in self.blocks:
            in_int8 = block.name in chosen
            why = self._effect(block.name)
            if not in_int8 and block.name in best:
                why += "; given back to FP16 for the gate"
            rows.append({"block": block.name, "precision": "int8" if in_int8 else "fp16", "why": why})
        for (why, op), sites in _refused(self.tuned.part.reasons).items():
            rows.append({"block": f"{len(sites)} {op}", "precision": "fp16", "why": why})
        return rows

    def _effect(self, block: str) -> str:
        """What INT8 in this block changed, in the first pair of compiled forms that differ in it alone."""
        for form in self.made.values():
            other = self.made.get(form.int8 ^ {block})
            if block in form.int8 and other is not None:
                return f"INT8 here {form.cost.against(other.cost)}"
        return "as asked for"


def front(compiled: Iterable[Form], always: Collection[frozenset[str]]) -> list[Form]:
    """The forms that touch less memory than every cheaper one, and those named in `always`; the cheapest first."""
    kept: list[Form] = []
    least_bytes = float("inf")
    for form in sorted(compiled, key=lambda form: form.cost.us):
        size = float("inf") if form.cost.bytes_touched is None else form.cost.bytes_touched
        if size < least_bytes or form.int8 in always:
            kept.append(form)
        least_bytes = min(least_bytes, size)
    return kept


def _output(model: bytes, batch: Tensors) -> NDArray[np.float32]:
    result: NDArray[np.float32] = open_session(model, exact_qdq=True).run(None, dict(batch))[0]
    return result


def _refused(reasons: Mapping[Site, str | None]) -> dict[tuple[str, str], list[Site]]:
    groups: dict[tuple[str, str], list[Site]] = defaultdict(list)
    for site, why in reasons.items():
        if why is not None:
            groups[why, site.op].append(site)
    return groups
