"""The work in a bundle: operations and bytes of each kernel of its compiled plans, and of each ONNX part.

    python -m edgefuse.optimize.work BUNDLE        one JSON document, see `counted`

A multiply-accumulate is two operations (FLOPs, whatever the precision); those of elementwise operators, softmax and
norms are left out, their bytes are not. Of a table that is only looked up, the rows that are taken count, not all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import TensorProto, helper

from edgefuse.optimize.audit import homes
from edgefuse.optimize.plan import Kernel, parse_layers
from edgefuse.optimize.products import products
from edgefuse.optimize.roles import computes_in
from edgefuse.optimize.view import Scope, View, attribute, elements, label
from edgefuse.runtime.bundle import Bundle, part_file
from edgefuse.runtime.engines import COMPILED_SET, ENGINE_TARGETS, engine_file, read_sidecar
from edgefuse.runtime.errors import EdgefuseError, EngineError

FLOPS_PER_MAC = 2
CPU_SETS = ("fp32", "cpu")  # part sets that are meant to be run by ONNX Runtime


@dataclass(frozen=True, slots=True)
class Work:
    """What one kernel does for one example."""

    kernel: str
    node: str  # the first ONNX node that it computes, "" where the plan names none
    precision: str  # a key of plan.BITS: what its products multiply in, else the narrowest that it reads; "" for none
    flops: int | None  # of its products, 0 where it has none; None where a size is free
    bytes: int | None  # read and written; None where a size is free


@dataclass(frozen=True, slots=True)
class Lookup:
    """A Gather of rows from a constant table."""

    table: str
    dims: tuple[int, ...]  # of the table
    rows: int  # that are taken at batch 1

    def spared(self, table_bytes: int) -> int:
        """Bytes of the table that are not read, if no row is taken twice."""
        return table_bytes - table_bytes * min(self.rows, self.dims[0]) // self.dims[0]


def kernel_work(kernels: Sequence[Kernel], model: bytes) -> tuple[list[Work], int]:
    """The work of every launched kernel, in order, and the FLOPs of products that no kernel names.

    Args:
        kernels: the plan, for batch 1.
        model: the ONNX part that it was compiled from.

    Raises:
        BundleError: the model is not ONNX.
    """
    scope = View(model).at_batch_1
    every, lookups = products(scope), _lookups(scope)
    found_in = homes(every, kernels)
    told = []
    for index, kernel in enumerate(kernels):
        if kernel.is_launched:
            mine = [product.macs for product in every if found_in.get(product.node) == index]
            taken = [lookups[node] for node in kernel.onnx_nodes if node in lookups]
            precision = computes_in(kernel) if mine else kernel.precision
            node = next(iter(kernel.onnx_nodes), "")
            told.append(Work(kernel.name, node, precision, _flops(mine), _bytes(kernel, taken)))
    lost = _flops([product.macs for product in every if product.node not in found_in])
    return told, lost or 0


def part_work(model: bytes, reference: bytes | None = None) -> dict[str, int | None]:
    """{flops, bytes} of one run of a part at batch 1; bytes are its inputs, weights and outputs, each once.

    Those are the compulsory ones: what would be moved if nothing else left the cache (Hill & Smith 1989; Williams et
    al. 2009 take them for the upper bound of a kernel's intensity).

    Args:
        model: the ONNX part.
        reference: the fp32 part that it was made from, which has the same inputs and outputs and operators of ONNX
            alone; the FLOPs are its own, so that what a rewrite saves shows as speed. None is the model itself.

    Raises:
        BundleError: the model is not ONNX.
    """
    scope = View(model).at_batch_1
    plain = scope if reference is None else View(reference).at_batch_1
    ends = [_size(plain, name) for name in (*plain.inputs, *plain.outputs)]
    alone = [lookup for lookup in _lookups(scope).values() if len(scope.readers[lookup.table]) == 1]
    spared = sum(lookup.spared(_size(scope, lookup.table) or 0) for lookup in alone if lookup.table in scope.tensors)
    weights = sum(_size(scope, name) or 0 for name in scope.tensors) - spared
    known = [size for size in ends if size is not None]
    return {
        "flops": _flops([product.macs for product in products(plain)]),
        "bytes": sum(known) + weights if len(known) == len(ends) else None,
    }


def bundle_work(folder: str | Path) -> dict[str, Any]:
    """The work of every engine and of every part that a CPU runs.

    Returns:
        engines: [{target, part, kernels: [fields of Work], unplaced_flops}].
        parts: {part set: {part: {flops, bytes}}}, as of part_work.

    Raises:
        BundleError: no bundle, or a damaged part.
        EngineError: an engine was built from other parts, or its plan cannot be read.
    """
    bundle = Bundle.open(folder)
    return {"engines": _engines(bundle), "parts": _parts(bundle)}


def counted(folder: str | Path) -> dict[str, Any]:
    """`bundle_work` with errors as text: {engines, parts, refused}, or {error} where not even the parts can be read.

    `refused` says why there are no engines, and is empty where they were read or the bundle has none.
    """
    try:
        bundle = Bundle.open(folder)
        parts = _parts(bundle)
    except EdgefuseError as error:
        return {"error": str(error)}
    try:
        return {"engines": _engines(bundle), "parts": parts, "refused": ""}
    except EdgefuseError as error:
        return {"engines": [], "parts": parts, "refused": str(error)}


def _parts(bundle: Bundle) -> dict[str, Any]:
    sets = [name for name in CPU_SETS if name in bundle.info.parts]
    return {
        name: {part: part_work(bundle.part(name, part), bundle.part("fp32", part)) for part in bundle.info.parts[name]}
        for name in sets
    }


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    every = [(target, part) for target in ENGINE_TARGETS for part in bundle.info.parts.get(COMPILED_SET, ())]
    built = [(target, part) for target, part in every if engine_file(bundle.folder, target, part).is_file()]
    return [_engine(bundle, target, part) for target, part in built]


def _engine(bundle: Bundle, target: str, part: str) -> dict[str, Any]:
    again = f"run `edgefuse build {bundle.folder} --target {target}`"
    path = engine_file(bundle.folder, target, part)
    sidecar = read_sidecar(bundle.folder, target, part)
    if sidecar is None or sidecar.source_sha256 != bundle.info.files.get(part_file(COMPILED_SET, part)):
        raise EngineError(f"{path} was not built from the {part} part of this bundle; {again}")
    told = (engine_file(bundle.folder, target, part, suffix) for suffix in (".plan.json", ".log"))
    plan = next((file for file in told if file.is_file()), None)
    kernels = parse_layers(plan.read_text(errors="replace")) if plan else []
    if not kernels:
        raise EngineError(f"{path} has no plan beside it that can be read (.plan.json or .log); {again}")
    works, lost = kernel_work(kernels, bundle.part(COMPILED_SET, part))
    return {"target": target, "part": part, "kernels": [asdict(work) for work in works], "unplaced_flops": lost}


def _flops(macs: Sequence[int | None]) -> int | None:
    known = [count for count in macs if count is not None]
    return FLOPS_PER_MAC * sum(known) if len(known) == len(macs) else None


def _bytes(kernel: Kernel, lookups: Iterable[Lookup]) -> int | None:
    total = kernel.bytes_touched
    for lookup in lookups:
        table = next((tensor for tensor in (*kernel.constants, *kernel.inputs) if tensor.dims == lookup.dims), None)
        if total is not None and table is not None:
            total -= lookup.spared(table.size_bytes or 0)
    return total


def _lookups(scope: Scope) -> dict[str, Lookup]:
    """The Gathers that take rows of a constant table, by their name."""
    found = {}
    for node in scope.nodes:
        if node.op_type == "Gather" and node.input[0] in scope.static and attribute(node, "axis", 0) == 0:
            dims = [dim for dim in scope.shape(node.input[0]) or () if dim]
            rows = elements(scope.shape(node.input[1]))
            if len(dims) > 1 and rows is not None and node.input[1] not in scope.static:
                found[label(node)] = Lookup(node.input[0], tuple(dims), rows)
    return found


def _size(scope: Scope, name: str) -> int | None:
    """Bytes of a tensor."""
    count, kind = elements(scope.shape(name)), scope.type(name)
    if count is None or kind in (TensorProto.UNDEFINED, TensorProto.STRING):
        return None
    return count * int(helper.tensor_dtype_to_np_dtype(kind).itemsize)


if __name__ == "__main__":
    print(json.dumps(counted(sys.argv[1])))
