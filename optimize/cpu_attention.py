"""Attention as one node of ONNX Runtime, which walks through the heads without copying them into place first.

Exporters write attention in many ways: heads are split and joined by reshapes, transposes, slices and gathers in any
order. So no pattern of them is matched here. Such nodes only move numbers, and where to is found by sending the numbers
0, 1, 2 ... through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgefuse.optimize.cpu_rewrite import MICROSOFT, Rewrite
from edgefuse.optimize.graph import FLOAT
from edgefuse.runtime.backend_onnx import open_session
from edgefuse.runtime.bundle import SENSOR_TENSORS
from edgefuse.runtime.errors import BundleError

MASK = SENSOR_TENSORS["text"][1]
MOVES = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather", "Identity"})
BATCH = 2  # of the numbers that are sent through; with 1, batch and time could not be told apart
MASKED = -1e4  # what ONNX Runtime's node adds to the scores of padding


@dataclass(frozen=True, slots=True)
class _Heads:
    """Queries, keys or values of all heads, as columns of a projection."""

    source: str  # [B, T, C]
    columns: slice  # of the source
    split: tuple[int, ...]  # shape they are brought to, [B, heads, T, size] or [B * heads, T, size]
    count: int
    scale: float  # what they are multiplied with on the way


def one_node_attention(rewrite: Rewrite) -> None:
    """softmax(q k + mask) v of all heads becomes one MultiHeadAttention node on [B, T, heads * size]."""
    for softmax in [node for node in rewrite.nodes if node.op_type == "Softmax"]:
        _fuse(rewrite, softmax)
    rewrite.sweep()


def _fuse(rewrite: Rewrite, softmax: NodeProto) -> None:
    """Put one node in the place of all from the projections to the joined heads, if that is what they are."""
    (value,), factor, mask = softmax.input, 1.0, list[str]()
    addition = rewrite.producer(value)
    if addition is not None and addition.op_type == "Add":
        scores = [name for name in addition.input if not _is_padding_mask(rewrite, name)]
        if len(scores) != 1:
            return
        value, mask = scores[0], ["", MASK]  # the node takes biases of the projections first
    product = rewrite.producer(value)
    if product is not None and (scaled := rewrite.scaled(product)) is not None:
        product, factor = rewrite.producer(scaled[0]), scaled[1]
    mixed = rewrite.sole_reader(softmax.output[0], "MatMul")
    if product is None or product.op_type != "MatMul" or mixed is None:
        return
    query, values = _heads(rewrite, product.input[0]), _heads(rewrite, mixed.input[1])
    keys = _heads(rewrite, product.input[1], is_transposed=True)
    if query is None or keys is None or values is None or values.scale != 1.0 or keys.count != query.count:
        return
    joined = _joined(rewrite, mixed.output[0], query)
    if joined is not None:
        rewrite.add(
            "MultiHeadAttention",
            [*(_selected(rewrite, heads) for heads in (query, keys, values)), *mask],
            instead_of=joined,
            domain=MICROSOFT,
            num_heads=query.count,
            scale=factor * query.scale * keys.scale,
        )


def _heads(rewrite: Rewrite, value: str, *, is_transposed: bool = False) -> _Heads | None:
    """Where the heads in `value` come from; None if they are not columns of one projection, in order."""
    source, scale = value, 1.0
    while (node := rewrite.producer(source)) is not None:
        if (scaled := rewrite.scaled(node)) is not None:
            source, scale = scaled[0], scale * scaled[1]
        elif node.op_type in MOVES:
            source = node.input[0]
        else:
            break
    shape = rewrite.shape(source)
    fixed = [size for size in shape[1:] if isinstance(size, int)]
    if len(shape) != 3 or len(fixed) != 2:
        return None
    numbers = _numbered((BATCH, *fixed))
    moved = _send(rewrite, source, numbers, value)
    if moved is None or moved.ndim not in (3, 4):
        return None
    moved = moved.swapaxes(-1, -2) if is_transposed else moved
    time, size = moved.shape[-2:]
    count = moved.size // (BATCH * time * size)
    columns = slice(int(moved.flat[0]), int(moved.flat[0]) + count * size)
    if time != fixed[0] or columns.stop > fixed[1]:
        return None
    expected = numbers[:, :, columns].reshape(BATCH, time, count, size).transpose(0, 2, 1, 3)
    if not np.array_equal(moved.reshape(expected.shape), expected):
        return None
    return _Heads(source, columns, moved.shape, count, scale)


def _selected(rewrite: Rewrite, heads: _Heads) -> str:
    """The heads as the node wants them: [B, T, count * size]."""
    columns = heads.columns
    if (columns.start, columns.stop) == (0, rewrite.shape(heads.source)[2]):
        return heads.source
    return rewrite.add("Slice", [heads.source, *(np.array([n]) for n in (columns.start, columns.stop, 2))])


def _joined(rewrite: Rewrite, value: str, heads: _Heads) -> str | None:
    """The value behind `value` (shaped like `heads`) that has all heads side by side, [B, T, count * size]."""
    numbers = _numbered(heads.split)
    time, size = heads.split[-2:]
    joined = numbers.reshape(BATCH, heads.count, time, size).transpose(0, 2, 1, 3).reshape(BATCH, time, -1)
    output: str = value
    while len(readers := rewrite.readers(output)) == 1 and readers[0].op_type in MOVES:
        output = str(readers[0].output[0])
        moved = _send(rewrite, value, numbers, output)
        if moved is not None and np.array_equal(moved, joined):
            return output
    return None


def _is_padding_mask(rewrite: Rewrite, value: str) -> bool:
    """Whether `value`, added to scores [B, heads, T, T], hides the words where the input `attention_mask` is 0."""
    if MASK not in rewrite.inputs:
        return False
    length = int(rewrite.shape(MASK)[1])
    mask = np.random.default_rng(0).integers(0, 2, (BATCH, length), np.int32)  # [B, T]
    added = _send(rewrite, MASK, mask, value, with_factors=True)
    if added is None or added.ndim != 4 or added.shape[-1] != length:
        return False
    hidden = np.broadcast_to(mask[:, None, None] == 0, added.shape)
    return bool((added[hidden] <= MASKED).all() and (added[~hidden] == 0).all())


def _numbered(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """0, 1, 2 ... in `shape`; float32 counts to 2^24."""
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def _send(
    rewrite: Rewrite, source: str, array: NDArray[Any], value: str, *, with_factors: bool = False
) -> NDArray[Any] | None:
    """What becomes of `array` between `source` and `value`. None if anything else has a say in that."""
    needed, between = {value}, []
    for node in reversed(rewrite.nodes):
        if needed.intersection(node.output) and source not in node.output:
            scaled = None if with_factors else rewrite.scaled(node)
            between.append(helper.make_node("Identity", [scaled[0]], list(node.output)) if scaled else node)
            needed.update(between[-1].input)
    made = {source, "", *(name for node in between for name in node.output)}
    constants = [name for name in needed - made if rewrite.constant(name) is not None]
    if len(made.union(constants)) < len(made | needed):
        return None
    given = [helper.make_tensor_value_info(source, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)]
    told = [helper.make_tensor_value_info(value, FLOAT, None)]
    try:
        session = open_session(rewrite.model(between[::-1], given, told))
    except BundleError:  # it moves no numbers of this type
        return None
    moved: NDArray[Any] = session.run(None, {source: array})[0]
    return moved
